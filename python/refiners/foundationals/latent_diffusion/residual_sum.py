"""The sum of two convolutions' work and a shortcut, which residual blocks are."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain.branches import add_result
from refiners.fluxion.layers.chain.joints import Addition
from refiners.fluxion.layers.watched import is_watched


class ResidualSum(fl.Sum):
    """Add a shortcut to what a chain gives.

    Where the chain ends in a convolution, that may add the shortcut itself: nothing is written that is only read again.
    """

    def forward(self, *args: Any) -> Any:
        children = tuple(self._modules.values())
        parts = None if torch.compiler.is_compiling() else _chain_and_shortcut(children)
        if parts is None:
            return super().forward(*args)
        chain, shortcut = parts
        addition = Addition(partial(shortcut, *args))
        is_first = shortcut is children[0]
        if is_first:  # each is called when it is its turn, or right before the last convolution
            addition.value()
        result = chain._call_layers(args, addition)
        if addition.is_done:
            return result
        first, second = (addition.value(), result) if is_first else (result, addition.value())
        return add_result(add_result(None, first), second)


def _chain_and_shortcut(children: tuple[fl.Module, ...]) -> tuple[fl.Chain, fl.Module] | None:
    """Give the two children, in whatever order they are, if nobody can tell which is called first."""
    if len(children) != 2:
        return None
    chain, shortcut = children if type(children[0]) is fl.Chain else children[::-1]
    if type(chain) is not fl.Chain or type(shortcut) not in (fl.Identity, fl.Conv2d):
        return None
    return None if is_watched(chain) or is_watched(shortcut) else (chain, shortcut)


def residual_chain(
    in_channels: int,
    out_channels: int,
    num_groups: int,
    eps: float,
    device: Device | str | None,
    dtype: DType | None,
) -> fl.Chain:
    """Make the chain of a residual block."""
    norm = partial(fl.GroupNorm, num_groups=num_groups, eps=eps, device=device, dtype=dtype)
    convolution = partial(fl.Conv2d, kernel_size=3, padding=1, device=device, dtype=dtype)
    return fl.Chain(
        norm(in_channels),
        fl.SiLU(),
        convolution(in_channels, out_channels),
        norm(out_channels),
        fl.SiLU(),
        convolution(out_channels, out_channels),
    )


def make_shortcut(
    in_channels: int, out_channels: int, device: Device | str | None, dtype: DType | None
) -> fl.Identity | fl.Conv2d:
    """Make the shortcut of a residual block: a convolution if the number of channels changes."""
    if in_channels == out_channels:
        return fl.Identity()
    return fl.Conv2d(in_channels, out_channels, kernel_size=1, device=device, dtype=dtype)


def check_channels(in_channels: int, out_channels: int, num_groups: int) -> None:
    """Raise `ValueError` unless both numbers of channels are made of so many groups."""
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value < 1 or value % num_groups != 0:
            raise ValueError(f"{name} must be positive and divisible by num_groups {num_groups}, got {value}")
