"""Updates written to a file, as other programs read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.metadata import check_metadata
from refiners.conversion.lora.peft_folder import check_peft_folder
from refiners.conversion.lora.spelling import Layer, LoraFormat, layers_of
from refiners.conversion.lora.targets import Targets, targets_of
from refiners.conversion.lora.writing import LayerPieces, check_format, fit_pieces, write_lora
from refiners.conversion.safetensors_writer import Piece
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
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel


def save_lora(
    model: LatentDiffusionModel,
    name: str,
    path: Path | str,
    *,
    format: LoraFormat = "kohya",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the updates of a name to a file, whole or not at all.

    The multiplier that they have now is not written: who reads the file chooses one.

    Args:
        model: The model that the updates are attached to.
        name: The name of the updates.
        path: The file to write, of safetensors; for PEFT a folder, new or one that it wrote.
        format: Who is to read it: `"kohya"`, `"diffusers"`, `"refiners"` or `"peft"`. Pairs of matrices are written for
            all, those with magnitudes (DoRA) for all but `"refiners"`; other kinds have tensors in files of LyCORIS
            alone, which go by the format of kohya-ss/sd-scripts. A folder of PEFT is for one network, whose modules it
            names as transformers 5 and diffusers do.
        metadata: What to say in the file, such as `lora_metadata(trigger_words="in the style of ...")`.

    Raises:
        TypeError: If the metadata are no texts.
        ValueError: If the path has another ending, or the folder of PEFT holds other things; if no updates of this name
            are attached, a layer has no published name, or the format has no tensors for an update; nothing is written.
    """
    check_format(format)
    if format == "peft":
        check_peft_folder(Path(path), "path")
    elif Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    said = check_metadata(metadata)
    targets = targets_of(model)
    found = list(_find(model, targets, name, format))
    if not found:
        raise ValueError(f"no updates of the name {name!r} are attached to the model")
    updates = [_pieces(layer, update, name, format) for layer, update in found]
    for update in updates:
        if fit_pieces(update, format) is None:
            raise ValueError(f"{name}: {update.layer.name}: the format {format!r} has no tensors for {update.title}")
    write_lora(path, updates, targets.networks, format, said)


def _find(
    model: LatentDiffusionModel, targets: Targets, name: str, format: LoraFormat
) -> Iterator[tuple[Layer, LayerUpdate]]:
    layers = layers_of(targets.networks)
    for part in targets.networks:
        paths = {id(place.layer): path for path, place in targets.places[part].items()}
        root = model.unet if part == "unet" else model.clip_text_encoder
        for adapter in root.layers(LoraAdapter, recurse=True):
            for update in (each for each in adapter.lora_layers if each.name == name):
                path = paths.get(id(adapter.target), "")
                layer = layers.get((part, path))
                if layer is None and path and format == "refiners":  # our own names are enough
                    layer = Layer(part, path, part, path)
                if layer is None:
                    raise ValueError(f"the layer {adapter.target} of LoRA {name!r} has no published name")
                yield layer, update


def _pieces(layer: Layer, update: LayerUpdate, name: str, format: LoraFormat) -> LayerPieces:
    """Give the tensors of an update by what they are for in files."""
    if isinstance(update, Lora):
        says_alpha = format == "kohya"  # other formats have it in texts, which few programs read
        down, up = update.factors() if says_alpha else update.scaled_factors()
        if up.shape[2:] not in ((), (1, 1)):
            raise ValueError(
                f"{name}: {layer.name}: the second of two convolutions must be of 1×1 in a file, got {tuple(up.shape)}"
            )
        return _made(layer, "LoRA", {"down": down, "up": up}, down.shape[0], update.multiplier if says_alpha else 1.0)
    assert isinstance(update, WeightUpdate)
    return _made(layer, type(update.change).__name__, *_tensors(update.change))


def _made(
    layer: Layer, title: str, tensors: Mapping[Role, Tensor], rank: int | None, scale: float = 1.0
) -> LayerPieces:
    pieces = {role: Piece.of(tensor) for role, tensor in tensors.items()}
    return LayerPieces(layer, title, pieces, rank, scale)


def _tensors(change: fl.Module) -> tuple[dict[Role, Tensor], int | None]:
    """Give tensors, and the rank by which readers divide alpha; without any, if no format has some for the change."""
    if isinstance(change, LowRankFactors):
        ones = (1,) * (change.down.ndim - 2)
        return {"down": change.down, "up": change.up.view(*change.up.shape, *ones)}, change.down.shape[0]
    if isinstance(change, Decomposition):
        factors, rank = _tensors(change.factors)
        ones = (1,) * (change.layer.weight.ndim - 2)
        shape = (1, -1, *ones) if change.of_inputs else (-1, 1, *ones)
        return factors | {"dora_scale": change.magnitude.view(shape)}, rank
    if isinstance(change, (HadamardFactors, KroneckerFactors)):
        kind = "hada" if isinstance(change, HadamardFactors) else "lokr"
        factors = dict(change.named_parameters())
        first, second = ("w1_b", "w2_b") if kind == "hada" else ("w2_b", "w1_b")  # by which alpha is divided
        ranks = [factors[key].shape[0] for key in (first, second) if key in factors]
        return {f"{kind}_{role}": factor for role, factor in factors.items()}, next(iter(ranks), None)
    if isinstance(change, ChannelFactors):
        has_bias = change.with_bias and change.layer.bias is not None and not change.of_inputs
        flag = torch.tensor(int(change.of_inputs))
        return ({"unknown": change.factors} if has_bias else {"ia3_w": change.factors, "on_input": flag}), None
    if isinstance(change, LayerChange):
        return {"unknown": torch.empty(0)}, None
    roles = ("diff", "diff_b") if isinstance(change, (fl.Linear, fl.Conv2d)) else ("w_norm", "b_norm")
    parameters = dict(change.named_parameters())
    return {role: parameters[key] for role, key in zip(roles, ("weight", "bias")) if key in parameters}, None
