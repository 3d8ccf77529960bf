"""Checkpoints as one file, with the names of the original implementations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_KEY_MAPS = json.loads(gzip.decompress((Path(__file__).parents[1] / "data/conversion/key_maps.json.gz").read_bytes()))


def write_single_file(path: Path, folder: Path) -> Path:
    """Write what is in a folder as one file; an existing one stays."""
    if path.exists():
        return path
    is_xl = (folder / "text_encoder_2").exists()
    unet = (
        ("convmap_unet_sdxl.diffusers", "sdxl_unet.from_ldm")
        if is_xl
        else ("convmap_unet_sd15.diffusers", "sd15_unet.from_ldm")
    )
    state: dict[str, Tensor] = {}
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        files = list((folder / name).glob("*.safetensors"))
        tensors = load_file(files[0]) if files else {}
        if name == "unet":
            state |= _renamed(tensors, *unet)
        elif name == "vae":
            state |= _renamed(tensors, "convmap_autoencoder.diffusers", "autoencoder.from_ldm")
        elif name == "text_encoder":
            prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
            state |= {f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
        elif tensors:
            state |= _open_clip(tensors)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _renamed(tensors: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    ours = _KEY_MAPS[source]
    theirs = {name: key for key, name in _KEY_MAPS[target].items()}
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        name = theirs[ours[layer]]
        is_projection = any(name.endswith(f"attn_1.{part}") for part in ("q", "k", "v", "proj_out"))
        result[f"{name}.{kind}"] = value[..., None, None] if is_projection and kind == "weight" else value
    return result


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the layers of a text encoder as OpenCLIP does, which has one tensor for three projections."""
    prefix = "conditioner.embedders.1.model."
    tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    result = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
        "text_projection": tensors["text_projection.weight"].T,
        "logit_scale": torch.tensor(4.6),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    index = 0
    while f"encoder.layers.{index}.layer_norm1.weight" in tensors:
        theirs, ours = f"encoder.layers.{index}.", f"transformer.resblocks.{index}."
        for kind in ("weight", "bias"):
            for source, target in names.items():
                result[f"{ours}{target}.{kind}"] = tensors[f"{theirs}{source}.{kind}"]
            parts = [tensors[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{ours}attn.in_proj_{kind}"] = torch.cat(parts)
        index += 1
    return {prefix + key: value for key, value in result.items()}
