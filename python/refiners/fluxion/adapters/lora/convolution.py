"""Updates of convolutions that go over an image as their layers do."""

from __future__ import annotations

from typing import Any

import refiners.fluxion.layers as fl


def geometry_of(layer: fl.Conv2d) -> dict[str, Any]:
    """Give the arguments by which a convolution goes over an image as another one does."""
    return {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}


def sizes_of(layer: fl.Conv2d) -> dict[str, tuple[int, int]]:
    """Give the arguments of a `Conv2dLora` of a layer: of the convolution like it, and of the one of 1×1 after it.

    Convolutions that are not square have no such numbers: those of their height are given.
    """
    padding = 0 if isinstance(layer.padding, str) else layer.padding[0]
    return {"kernel_size": (layer.kernel_size[0], 1), "stride": (layer.stride[0], 1), "padding": (padding, 0)}


def by_size(down: fl.Conv2d, up: fl.Conv2d) -> tuple[fl.Conv2d, fl.Conv2d]:
    """Order the convolutions of an update: the one like the layer, and the one of 1×1."""
    return (down, up) if up.kernel_size == (1, 1) else (up, down)


def go_like(layer: fl.Conv2d, down: fl.Conv2d, up: fl.Conv2d) -> bool:
    """Whether two convolutions, the first with the stride of a layer, see what it sees and give results of its size."""
    large, _ = by_size(down, up)
    if layer.groups != 1 or (large.kernel_size, large.dilation) != (layer.kernel_size, layer.dilation):
        return False
    return all(
        _length(up, axis, up.stride, _length(down, axis, layer.stride, length))
        == _length(layer, axis, layer.stride, length)
        for axis in (0, 1)
        for length in range(_LONG, _LONG + layer.stride[axis])
    )


_LONG = 1 << 10  # pixels, more than kernels have


def _length(layer: fl.Conv2d, axis: int, stride: tuple[int, ...], length: int) -> int:
    """Give how many places there are along an axis after a convolution."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    padding = {"same": reach, "valid": 0}[layer.padding] if isinstance(layer.padding, str) else 2 * layer.padding[axis]
    return (length + padding - reach - 1) // stride[axis] + 1
