"""Updates written to a file, as other programs read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.conversion.lora.names import published_names
from refiners.conversion.lora.targets import targets_of
from refiners.fluxion.adapters.lora import (
    ChannelFactors,
    Decomposition,
    HadamardFactors,
    KroneckerFactors,
    LayerChange,
    LayerUpdate,
    Lora,
    LoraAdapter,
    LowRankFactors,
    WeightUpdate,
)
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

LoraFormat: TypeAlias = Literal["kohya", "diffusers"]
"""Who reads the file: kohya-ss/sd-scripts, and with it most programs; or diffusers, and PEFT."""

_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_PAIRS: dict[LoraFormat, tuple[str, str]] = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "diffusers": ("lora_A.weight", "lora_B.weight"),
}


class _Found(NamedTuple):
    network: str
    layer: str
    update: LayerUpdate


def save_lora(
    model: LatentDiffusionModel,
    name: str,
    path: Path | str,
    *,
    format: LoraFormat = "kohya",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the updates of a name to a file.

    The multiplier that they have now is not written: who reads the file chooses one.

    Args:
        model: The model that the updates are attached to.
        name: The name of the updates.
        path: The file to write, of safetensors.
        format: Who is to read it. Pairs of matrices, also with magnitudes (DoRA), are written for all; other kinds have
            tensors in files of LyCORIS alone, which go by the format of kohya-ss/sd-scripts.
        metadata: What to say in the file, such as `{"modelspec.trigger_phrase": "in the style of ..."}`.

    Raises:
        ValueError: If the path has another ending, no updates of this name are attached, a layer has no published name,
            or the format has no tensors for an update; nothing is written.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    if format not in get_args(LoraFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(LoraFormat))}, got {format!r}")
    found = list(_find(model, name))
    if not found:
        raise ValueError(f"no updates of the name {name!r} are attached to the model")
    prefixes = dict(_KOHYA)
    if len({each.network for each in found} & {"text_encoder_2"}) == 0 and not _has_two_text_encoders(model):
        prefixes["text_encoder"] = "lora_te"
    tensors: dict[str, Tensor] = {}
    for network, layer, update in found:
        key = f"{network}.{layer}" if format == "diffusers" else f"{prefixes[network]}_{layer.replace('.', '_')}"
        tensors |= {
            f"{key}.{role}": _saved(value) for role, value in _tensors(update, format, f"{name}: {layer}").items()
        }
    save_to_safetensors(path, tensors, {"format": "pt", **(metadata or {})})


def _has_two_text_encoders(model: LatentDiffusionModel) -> bool:
    return targets_of(model).networks["text_encoder"].component == "double_text_encoder"


def _find(model: LatentDiffusionModel, name: str) -> Iterator[_Found]:
    targets = targets_of(model)
    for part, network in targets.networks.items():
        paths = {id(place.layer): path for path, place in targets.places[part].items()}
        names = published_names(part, network)
        root = model.unet if part == "unet" else model.clip_text_encoder
        for adapter in root.layers(LoraAdapter, recurse=True):
            for update in (each for each in adapter.lora_layers if each.name == name):
                layer = names.get(paths.get(id(adapter.target), ""))
                if layer is None:
                    raise ValueError(f"the layer {adapter.target} of LoRA {name!r} has no published name")
                yield _Found(*layer, update)


def _tensors(update: LayerUpdate, format: LoraFormat, label: str) -> dict[str, Tensor]:
    """Give the tensors of an update by the ends of their keys."""
    if isinstance(update, Lora):
        down, up = update.factors()
        if up.shape[2:] not in ((), (1, 1)):
            raise ValueError(f"{label}: the second of two convolutions must be of 1×1 in a file, got {tuple(up.shape)}")
        return _pair(down, up, format, update.multiplier)
    assert isinstance(update, WeightUpdate)
    change = update.change
    tensors = _low_rank(change, format)
    if tensors is None and format == "kohya":
        tensors = _lycoris(change)
    if tensors is None:
        raise ValueError(f"{label}: the format {format!r} has no tensors for {type(change).__name__}")
    return tensors


def _pair(down: Tensor, up: Tensor, format: LoraFormat, multiplier: float = 1.0) -> dict[str, Tensor]:
    if format == "diffusers":  # has no place for a multiplier
        return dict(zip(_PAIRS[format], (down, up if multiplier == 1 else up * multiplier), strict=True))
    alpha = torch.tensor(multiplier * down.shape[0])  # which readers divide by the rank
    return dict(zip(_PAIRS[format], (down, up), strict=True)) | {"alpha": alpha}


def _low_rank(change: fl.Module, format: LoraFormat) -> dict[str, Tensor] | None:
    """Give the tensors of pairs of matrices, with magnitudes or without."""
    if isinstance(change, LowRankFactors):
        ones = (1,) * (change.down.ndim - 2)
        return _pair(change.down, change.up.view(*change.up.shape, *ones), format)
    if isinstance(change, Decomposition) and isinstance(change.factors, LowRankFactors):
        pair = _low_rank(change.factors, format)
        if pair is not None and format == "kohya":
            return pair | _magnitudes(change)
        if pair is not None and not change.of_inputs:
            shape = (-1,) if isinstance(change.layer, fl.Linear) else (1, -1, 1, 1)
            return pair | {"lora_magnitude_vector": change.magnitude.view(shape)}
    return None


def _magnitudes(change: Decomposition) -> dict[str, Tensor]:
    ones = (1,) * (change.layer.weight.ndim - 2)
    shape = (1, -1, *ones) if change.of_inputs else (-1, 1, *ones)
    return {"dora_scale": change.magnitude.view(shape)}


def _lycoris(change: fl.Module) -> dict[str, Tensor] | None:
    if isinstance(change, Decomposition):
        factors = _lycoris(change.factors)
        return None if factors is None else factors | _magnitudes(change)
    if isinstance(change, (HadamardFactors, KroneckerFactors)):
        kind = "hada" if isinstance(change, HadamardFactors) else "lokr"
        factors = dict(change.named_parameters())
        first, second = ("w1_b", "w2_b") if kind == "hada" else ("w2_b", "w1_b")  # by which alpha is divided
        ranks = [factors[key].shape[0] for key in (first, second) if key in factors]
        alpha = {"alpha": torch.tensor(float(ranks[0]))} if ranks else {}
        return {f"{kind}_{role}": factor for role, factor in factors.items()} | alpha
    if isinstance(change, ChannelFactors):
        has_bias = change.with_bias and change.layer.bias is not None and not change.of_inputs
        flag = torch.tensor(int(change.of_inputs))
        return None if has_bias else {"weight": change.factors, "on_input": flag}
    if isinstance(change, LayerChange):
        return None
    roles = ("diff", "diff_b") if isinstance(change, (fl.Linear, fl.Conv2d)) else ("w_norm", "b_norm")
    parameters = dict(change.named_parameters())
    return {role: parameters[key] for role, key in zip(roles, ("weight", "bias"), strict=True) if key in parameters}


def _saved(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().clone()  # two keys must not share memory
