"""What an update adds to the weight of its layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Size, Tensor, device as Device

import refiners.fluxion.layers as fl
from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.plan import Update
from refiners.conversion.lora.tools.opened import OpenedLora
from refiners.fluxion.adapters.lora import WeightFactors, WeightUpdate

MAGNITUDES = ("dora_scale", "magnitude")
WHOLE = ("diff", "diff_b", "w_norm", "b_norm")
"""The tensors of differences that are kept whole."""


def is_sum(update: Update) -> bool:
    """Whether an update is a term of a sum: what it adds does not depend on the weight."""
    products = ("hada_", "lokr_", *WHOLE)
    is_known = "down" in update.keys or any(role.startswith(products) for role in update.keys)
    return is_known and not any(role in update.keys for role in MAGNITUDES)


def is_whole(update: Update) -> bool:
    """Whether an update is the difference itself."""
    return any(role in update.keys for role in WHOLE)


def pair_of(tensors: Mapping[Role, Tensor], update: Update) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Give a pair as two matrices, and the kernel of a convolution, which is in the columns of the second factor.

    Raises:
        ValueError: If the second convolution is larger than 1×1.
    """
    down, up = tensors["down"], tensors["up"]
    if up.shape[2:] not in ((), (1, 1)):
        raise ValueError(f"{update.name}: the second of two convolutions must be of 1×1, got {tuple(up.shape)}")
    if "mid" in tensors:  # a convolution after one of 1×1 is one convolution
        down = torch.einsum("mrhw,ri->mihw", tensors["mid"], down.flatten(1))
    return down.flatten(1), up.flatten(1), _kernel(down)


def delta_of(opened: OpenedLora, update: Update, device: Device | str) -> tuple[Tensor, tuple[int, ...]]:
    """Give what an update adds to the weight, in float32 as a matrix, and the kernel of a convolution.

    Raises:
        ValueError: If the shape of the weight must be known, and is not.
    """
    tensors = opened.read(update, device, torch.float32)
    if "down" in tensors:
        down, up, kernel = pair_of(tensors, update)
        return up @ down * update.scale, kernel
    if "diff" in tensors:
        delta = tensors["diff"]
        return delta.flatten(1), _kernel(delta)
    layer = _layer(opened, update)
    kind = opened.kind(update)
    scaled = kind.scaled(tensors)
    made = kind.make(
        "", {role: each * update.scale if role in scaled else each for role, each in tensors.items()}, layer
    )
    assert isinstance(made, WeightUpdate) and isinstance(made.change, WeightFactors)
    delta = made.change.difference(torch.float32).detach()
    return delta.flatten(1), _kernel(delta)


def _kernel(weight: Tensor) -> tuple[int, ...]:
    """Give the kernel of a convolution, if it is larger than 1×1: files have that as a matrix, too."""
    return () if weight.shape[2:] == (1, 1) else tuple(weight.shape[2:])


def _layer(opened: OpenedLora, update: Update) -> fl.Linear | fl.Conv2d:
    """Make the layer of an update, without values."""
    layer = opened.layers[update.name]
    shape: Size | None = (opened.networks[layer.part].shapes or {}).get(layer.path)
    if shape is None:
        raise ValueError(
            f"{opened.plan.label}: the matrix of a {update.kind} has the shape of the weight: give model or checkpoint"
        )
    if len(shape) == 2:
        return fl.Linear(shape[1], shape[0], bias=False, device="meta")
    return fl.Conv2d(shape[1], shape[0], kernel_size=(shape[2], shape[3]), use_bias=False, device="meta")
