"""Checkpoints of the published sizes with random weights, in the format of diffusers, as small and as full models.

Numbers are drawn in float32 and stored in float16, so that whoever reads a file has the same ones.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import refiners.foundationals.clip.tokenizer

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
UNET_SD15: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "in_channels": 4,
    "sample_size": 64,
}
UNET_SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
}
TEXT_G: dict[str, Any] = {
    **TEXT_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
SD15: dict[str, dict[str, Any]] = {"unet": UNET_SD15, "vae": VAE, "text_encoder": TEXT_L}
SD15_INPAINTING = {**SD15, "unet": {**UNET_SD15, "in_channels": 9}}
SDXL: dict[str, dict[str, Any]] = {
    "unet": UNET_SDXL,
    "vae": {**VAE, "scaling_factor": 0.13025},
    "text_encoder": TEXT_L,
    "text_encoder_2": TEXT_G,
}


# Heads have 64 features, and time ids 256 sinusoids, as in the published models: a single file does not say.
_SMALL_VAE = {"block_out_channels": [32, 32, 64, 64]}
_SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 3}
_SMALL_TEXT_2 = {**_SMALL_TEXT, "hidden_size": 128, "num_attention_heads": 2, "projection_dim": 128}
_SMALL_UNET = {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64}
_SMALL_UNET_XL = {
    "attention_head_dim": [1, 1, 1],
    "block_out_channels": [32, 64, 64],
    "cross_attention_dim": 192,
    "projection_class_embeddings_input_dim": 1664,
    "transformer_layers_per_block": [1, 2, 3],
}
_SMALL: dict[str, dict[str, Any]] = {"unet": _SMALL_UNET, "vae": _SMALL_VAE, "text_encoder": _SMALL_TEXT}


def small(components: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Shrink the models of a checkpoint; their topology stays, but for the depth of attention and of text encoders."""
    changes = _SMALL
    if "text_encoder_2" in components:
        changes = {**changes, "unet": _SMALL_UNET_XL, "text_encoder_2": _SMALL_TEXT_2}
    return {name: {**config, **changes[name]} for name, config in components.items()}


def write_folder(folder: Path, components: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a checkpoint as diffusers does; an existing one stays."""
    if (folder / "model_index.json").exists():
        return folder
    is_xl = "text_encoder_2" in components
    inpaints = components["unet"]["in_channels"] == 9
    pipeline = (
        "StableDiffusionXLPipeline"
        if is_xl
        else "StableDiffusionInpaintPipeline"
        if inpaints
        else "StableDiffusionPipeline"
    )
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    for name, config in components.items():
        is_text = name.startswith("text_encoder")
        stem = "model" if is_text else "diffusion_pytorch_model"
        write_json(folder / name / "config.json", config)
        save_file(random_state(name, make_model(config)), folder / name / f"{stem}.safetensors", {"format": "pt"})
        index[name] = [
            "transformers" if is_text else "diffusers",
            config["architectures"][0] if is_text else config["_class_name"],
        ]
        if is_text:
            tokenizer = name.replace("text_encoder", "tokenizer")
            write_tokenizer(folder / tokenizer, pad_token="!" if name == "text_encoder_2" else "<|endoftext|>")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    if not is_xl:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    write_json(folder / "model_index.json", index)
    return folder


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """Make a model of diffusers or transformers, without values."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if "architectures" in config:
            architecture = getattr(transformers, config["architectures"][0])
            return architecture(transformers.CLIPTextConfig(**config))
        return getattr(diffusers, config["_class_name"]).from_config(dict(config))


def random_state(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Draw the parameters of a model such that what goes through it keeps its size."""
    return {key: random_tensor(f"{name}:{key}", parameter.shape) for key, parameter in model.named_parameters()}


def random_tensor(name: str, shape: torch.Size) -> Tensor:
    x = torch.randn(shape, generator=Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) == 1:
        x = 0.05 * x + (1.0 if name.endswith(".weight") else 0.0)
    elif "embedding" in name and not name.endswith(("linear_1.weight", "linear_2.weight")):
        x = 0.1 * x
    else:
        x = x * (0.7 / math.sqrt(math.prod(shape[1:])))
    return x.half()


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """Write the public tokenizer as transformers reads it."""
    path = Path(refiners.foundationals.clip.tokenizer.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    from refiners.foundationals.clip.tokenizer import CLIPTokenizer

    characters = list(CLIPTokenizer().byte_to_unicode_mapping.values())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(merge.split()) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    settings = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
