"""Styles as low-rank updates of the base model: attach and train them, scale, save, load and eject them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.demo.digits import Style, load_digits
from refiners.demo.training import fit
from refiners.demo.unet import DigitsUNet
from refiners.fluxion.adapters import Conv2dLora, LinearLora, Lora, LoraAdapter, auto_attach_loras
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors

RANK = 16
OUTLINED = Path(__file__).with_name("outlined.safetensors")  # `python -m refiners.demo.train --style outlined`


def attach_style(unet: DigitsUNet, style: Style) -> dict[str, Lora[Any]]:
    """Attach an update to each linear layer and each convolution of the model; it changes nothing yet.

    Returns:
        The updates in the order of the tree.
    """
    layers = [layer for layer, parent in unet.walk(_is_adaptable) if not isinstance(parent, Lora)]
    loras = {f"{index:03d}": _create_lora(style, layer) for index, layer in enumerate(layers)}
    auto_attach_loras(loras, unet)
    return loras


def train_style(
    unet: DigitsUNet, loras: Mapping[str, Lora[Any]], style: Style, num_steps: int, generator: torch.Generator
) -> Iterator[float]:
    """Train updates alone on the images of a style, and yield the loss of each step.

    Args:
        unet: The model they are attached to; its own weights are frozen from now on.
        loras: The updates.
        style: Which images to learn from.
        num_steps: How many steps.
        generator: Where the random numbers come from.
    """
    unet.requires_grad_(False)
    weights = [weight.requires_grad_() for lora in loras.values() for weight in lora.parameters()]
    yield from fit(unet, weights, *load_digits(style), num_steps, learning_rate=1e-2, generator=generator)
    unet.requires_grad_(False)


def set_scales(unet: DigitsUNet, scales: Mapping[str, float | Tensor]) -> None:
    """Set the multipliers of styles by name: a number, or a tensor with one for each sample of the batch."""
    for adapter in unet.layers(LoraAdapter):
        adapter.scale = dict(scales)


def eject_styles(unet: DigitsUNet) -> None:
    """Take all updates out of the model."""
    for adapter in list(unet.layers(LoraAdapter)):
        adapter.eject()


def save_style(loras: Mapping[str, Lora[Any]], path: Path) -> None:
    """Save updates by their keys, which sort in the order of the tree."""
    tensors: dict[str, Tensor] = {}
    for key, lora in loras.items():
        tensors[f"{key}.lora_down.weight"] = lora.down.weight
        tensors[f"{key}.lora_up.weight"] = lora.up.weight
    save_to_safetensors(path, tensors)


def load_style(unet: DigitsUNet, style: Style, path: Path) -> None:
    """Attach the updates of a file to the model, beside those of other styles that it may have."""
    tensors = load_from_safetensors(path)
    loras = Lora.from_dict(style, {key: tensors[key] for key in sorted(tensors)})
    auto_attach_loras(loras, unet)
    unet.requires_grad_(False)


def _is_adaptable(layer: fl.Module, _: fl.Chain) -> bool:
    return isinstance(layer, fl.Linear | fl.Conv2d)


def _create_lora(name: str, layer: fl.Module) -> Lora[Any]:
    if isinstance(layer, fl.Linear):
        return LinearLora(name, layer.in_features, layer.out_features, rank=RANK)
    assert isinstance(layer, fl.Conv2d)  # the only other kind that `_is_adaptable` lets through
    (kernel_size, _), (stride, _), padding = layer.kernel_size, layer.stride, layer.kernel_size[0] // 2
    return Conv2dLora(
        name,
        layer.in_channels,
        layer.out_channels,
        rank=RANK,
        kernel_size=(kernel_size, 1),
        stride=(stride, 1),
        padding=(padding, 0),
    )
