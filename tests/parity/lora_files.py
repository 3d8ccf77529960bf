"""LoRA files for models of diffusers and transformers, with random weights, as programs write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import make_model
from safetensors.torch import save_file
from single_file import _KEY_MAPS as KEY_MAPS
from torch import Generator, Tensor, nn

RANK, ALPHA = 8, 4.0
TEXT = r"_proj$|fc[12]$"
ATTENTION = r"attn[12]\.to_"
TRANSFORMERS = r"attentions"
CONVOLUTIONS = r"resnets.*conv|samplers\.0\.conv"
TARGETS = {  # the same for PEFT, as ends of names
    TEXT: ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    TRANSFORMERS: ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
}
# Of each file: who writes it, and which layers of each network it has. diffusers knows the original names of Stable
# Diffusion XL alone: files for 1.5 have those of diffusers.
FILES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "kohya": ("ldm", {"unet": TRANSFORMERS, "text_encoder": TEXT, "text_encoder_2": TEXT}),
    "peft": ("peft", {"unet": TRANSFORMERS, "text_encoder": TEXT, "text_encoder_2": TEXT}),
    "texts": ("kohya", {"text_encoder": TEXT, "text_encoder_2": TEXT}),
    "attention": ("kohya", {"unet": ATTENTION}),
    "convolutions": ("kohya", {"unet": CONVOLUTIONS}),
}
CASES: Mapping[str, Mapping[str, float]] = {
    "kohya": {"kohya": 1.0},
    "PEFT": {"peft": 1.0},
    "two of them": {"kohya": 0.7, "peft": -0.4},
    "text encoders alone": {"texts": 1.0},
    "attention alone": {"attention": 0.8},
    "convolutions": {"convolutions": 1.0},
}


def ldm(is_xl: bool) -> Callable[[str], str]:
    """Spell the names of layers as the original implementation does."""
    ours = KEY_MAPS["convmap_unet_sdxl.diffusers" if is_xl else "convmap_unet_sd15.diffusers"]
    theirs = {name: key for key, name in KEY_MAPS["sdxl_unet.from_ldm" if is_xl else "sd15_unet.from_ldm"].items()}
    # The maps are of the full depth, which small models have not.
    blocks = r"transformer_blocks\.\d+\."

    def spell(name: str) -> str:
        block = re.search(blocks, name)
        found = theirs[ours[re.sub(blocks, "transformer_blocks.0.", name)]].removeprefix("model.diffusion_model.")
        return found.replace("transformer_blocks.0.", block[0]) if block else found

    return spell


def text_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def write_files(folder: Path, components: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Write all files for a checkpoint, and count the layers of each in its metadata."""
    written: dict[str, Path] = {}
    for seed, (title, (style, patterns)) in enumerate(FILES.items()):
        tensors, generator = dict[str, Tensor](), Generator().manual_seed(seed)
        networks = {network: pattern for network, pattern in patterns.items() if network in components}
        for network, pattern in networks.items():
            for name, layer in _layers(components[network], pattern):
                pair = _draw(layer, generator)
                tensors |= (
                    _kohya(network, name, pair, style, components) if style != "peft" else _peft(network, name, pair)
                )
        configs = {network: _config(pattern) for network, pattern in networks.items() if style == "peft"}
        config = {f"{network}.{key}": value for network, each in configs.items() for key, value in each.items()}
        said = {"lora_adapter_metadata": json.dumps(config)} if config else {}
        written[title] = folder / f"{title}.safetensors"
        save_file(tensors, written[title], {"format": "pt", **said})
    return written


def _layers(config: Mapping[str, Any], pattern: str) -> Iterator[tuple[str, Any]]:
    for name, layer in make_model(config).named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and re.search(pattern, name):
            yield name, layer


def _draw(layer: Any, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw a pair that changes a layer by as much as what it gives."""
    weight = layer.weight
    ones = (1,) * (weight.ndim - 2)
    down = torch.randn(RANK, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
    return down, torch.randn(weight.shape[0], RANK, *ones, generator=generator) / 2


def _kohya(
    network: str, name: str, pair: tuple[Tensor, Tensor], style: str, components: Mapping[str, Any]
) -> dict[str, Tensor]:
    is_xl = "text_encoder_2" in components
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if is_xl else "lora_te", "text_encoder_2": "lora_te2"}
    spelled = text_name(name) if network != "unet" else ldm(is_xl)(name) if is_xl and style == "ldm" else name
    key = f"{prefixes[network]}_{spelled.replace('.', '_')}"
    down, up = pair
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}


def _peft(network: str, name: str, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    key = f"{network}.{name if network == 'unet' else text_name(name)}"
    return {f"{key}.lora_A.weight": pair[0], f"{key}.lora_B.weight": pair[1]}


def _config(pattern: str) -> dict[str, Any]:
    return {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS[pattern], "peft_type": "LORA"}
