"""Padding."""

from __future__ import annotations

from torch.nn import ReflectionPad2d as _ReflectionPad2d

from refiners.fluxion.layers.module import Module


class ReflectionPad2d(_ReflectionPad2d, Module):
    """Pad an image with its mirror image, as `torch.nn.ReflectionPad2d`.

    Args:
        padding: How many pixels to add on each side.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The input.

    Returns:
        Float[Tensor, "batch channels height+2*padding width+2*padding"]: The padded input.
    """

    def __init__(self, padding: int) -> None:
        super().__init__(padding)
