"""Files of updates of every kind, in every format, drawn at random."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tiny_models import Layer
from torch import Tensor
from update_kinds import KINDS, RANK, Draw, Roles, change_of

_PAIR_OF_PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}
_PAIR_OF_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_PAIR_OF_OURS = {"down": "down.weight", "up": "up.weight"}
_KOHYA = {**_PAIR_OF_KOHYA, "ia3_w": "weight"}
_PAIRS_ALONE = {kind: "the format has pairs of matrices alone" for kind in KINDS if kind not in ("LoRA", "LoCon")}
_LACKS_OF_PEFT = {
    "LoCon with a core": "PEFT has no convolutions with a core",
    "difference": "PEFT saves whole layers that it trains, no differences",
    "difference of norms": "PEFT saves whole layers that it trains, no differences",
}
_TEXTS_OF_KOHYA = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_NETWORKS = ("unet", "text_encoder", "text_encoder_2")


class NoSuchFile(Exception):
    """Says why there are no files of a kind in a format."""


class Format(NamedTuple):
    """How a program names updates.

    Attributes:
        prefixes: What it puts before the names of the layers of each network.
        names: Whose names of layers it has: those of diffusers and transformers, or of the original implementation.
        has_dots: Whether the dots of names stay.
        endings: What the keys of tensors end with, by what these are for; with this itself, if they are not named.
        lacks: Why there are none of some kinds.
        alpha: Where multipliers are: beside the matrices, in the metadata, or nowhere.
    """

    prefixes: Mapping[str, str]
    names: str = "name"
    has_dots: bool = True
    endings: Mapping[str, str] = _KOHYA
    lacks: Mapping[str, str] = {}
    alpha: str = "tensors"

    def name_of(self, layer: Layer) -> str:
        name = getattr(layer, self.names)
        return self.prefixes[layer.network] + (name if self.has_dots else name.replace(".", "_"))


FORMATS: Mapping[str, Format] = {
    "kohya, names of diffusers": Format({"unet": "lora_unet_", **_TEXTS_OF_KOHYA}, has_dots=False),
    "kohya, original names": Format({"unet": "lora_unet_", **_TEXTS_OF_KOHYA}, names="ldm", has_dots=False),
    "diffusers and PEFT": Format(
        {part: f"{part}." for part in _NETWORKS},
        endings={**_PAIR_OF_PEFT, "dora_scale": "lora_magnitude_vector"},
        lacks=_LACKS_OF_PEFT,
        alpha="metadata",
    ),
    "processors of attention": Format(
        {},
        endings=_PAIR_OF_OURS,
        lacks={**_PAIRS_ALONE, "LoCon": "attention has no convolutions"},
        alpha="nowhere",
    ),
    "Refiners": Format({}, endings=_PAIR_OF_OURS, lacks=_PAIRS_ALONE, alpha="nowhere"),
    "OneTrainer": Format({"unet": "lora_unet.", "text_encoder": "lora_te1.", "text_encoder_2": "lora_te2."}),
    "ai-toolkit": Format(
        {
            "unet": "diffusion_model.",
            "text_encoder": "text_encoders.clip_l.transformer.",
            "text_encoder_2": "text_encoders.clip_g.transformer.",
        },
        names="ldm",
        endings={**_KOHYA, **_PAIR_OF_PEFT},
    ),
    "LyCORIS": Format(dict.fromkeys(_NETWORKS, "lycoris_"), has_dots=False),
}


class Drawn(NamedTuple):
    """The update of a layer.

    Attributes:
        layer: The layer.
        name: What the file calls it.
        kind: Which of `KINDS` it is.
        tensors: Its tensors, by what they are for.
        scale: What the product of its matrices is multiplied by.
    """

    layer: Layer
    name: str
    kind: str
    tensors: Roles
    scale: float

    def change(self) -> dict[str, Tensor]:
        """Compute the changes of the parameters of the layer by its formula, in float64."""
        weight, bias = self.layer.module.weight, self.layer.module.bias
        return change_of(self.tensors, self.scale, weight.detach(), None if bias is None else bias.detach())


def draw_updates(format: str, kind: str, layers: Iterable[Layer], seed: int = 0, alpha: float = 3.0) -> list[Drawn]:
    """Draw an update of each layer.

    Raises:
        NoSuchFile: If the format has no such updates.
    """
    spelled, layers, draw = FORMATS[format], list(layers), Draw(seed)
    if kind in spelled.lacks:
        raise NoSuchFile(spelled.lacks[kind])
    make = KINDS["IA3 of PEFT" if kind == "IA3" and format == "diffusers and PEFT" else kind].draw
    scale = 1.0 if spelled.alpha == "nowhere" else alpha / RANK
    names = _numbered(layers) if format == "Refiners" else [_name(format, layer) for layer in layers]
    return [Drawn(each, name, kind, make(draw, each.module), scale) for each, name in zip(layers, names, strict=True)]


def tensors_of(format: str, updates: Iterable[Drawn]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the tensors of a file, and what else it says."""
    spelled, updates = FORMATS[format], list(updates)
    tensors: dict[str, Tensor] = {}
    config: dict[str, float] = {}
    for update in updates:
        for role, tensor in update.tensors.items():
            tensors[f"{update.name}.{spelled.endings.get(role, role)}"] = tensor
        if KINDS[update.kind].has_rank and spelled.alpha == "tensors":
            tensors[f"{update.name}.alpha"] = torch.tensor(update.scale * RANK)
        elif KINDS[update.kind].has_rank and spelled.alpha == "metadata":
            network = update.layer.network
            config |= {f"{network}.r": RANK, f"{network}.lora_alpha": update.scale * RANK}
    return tensors, {"lora_adapter_metadata": json.dumps(config)} if config else {}


def write(path: Path, format: str, updates: Iterable[Drawn]) -> Path:
    """Write a file of safetensors."""
    tensors, said = tensors_of(format, updates)
    save_file(tensors, path, {"format": "pt", **said})
    return path


def _name(format: str, layer: Layer) -> str:
    if format != "processors of attention":
        return FORMATS[format].name_of(layer)
    parent, _, own = layer.name.removesuffix(".0").rpartition(".")
    if layer.network == "unet":
        return f"unet.{parent}.processor.{own}_lora"
    return f"{layer.network}.{parent}.to_{own.removesuffix('_proj')}_lora"


def _numbered(layers: Iterable[Layer]) -> list[str]:
    """Name layers as our files do: by their chain, the number among those of it that are adapted, and the class."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for layer in layers:
        parent = f"{layer.root}.{layer.path.rpartition('.')[0]}"
        counts[parent] = counts.get(parent, 0) + 1
        names.append(f"{parent}.{counts[parent]}.{type(layer.module).__name__}")
    return names


def choose(layers: Iterable[Layer], format: str, kind: str, network: str, count: int = 4) -> list[Layer]:
    """Choose some chains of a network, and all of their layers that can have updates of a kind in a format.

    Raises:
        NoSuchFile: If there are none.
    """
    by_chain: dict[str, list[Layer]] = {}
    for each in layers:
        is_named = format != "processors of attention" or "attn" in each.name
        if each.network == network and is_named and KINDS[kind].fits(each.module):
            by_chain.setdefault(each.path.rpartition(".")[0], []).append(each)
    if not by_chain:
        raise NoSuchFile("there is no such layer in the network")
    chains = list(by_chain)
    chosen = sorted(random.Random(f"{kind} {network}").sample(range(len(chains)), min(count, len(chains))))
    return [layer for index in chosen for layer in by_chain[chains[index]]]
