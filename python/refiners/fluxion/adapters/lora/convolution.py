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
