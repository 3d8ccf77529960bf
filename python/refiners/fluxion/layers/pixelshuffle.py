"""Exchange of pixels for channels."""

from __future__ import annotations

from torch.nn import PixelUnshuffle as _PixelUnshuffle

from refiners.fluxion.layers.module import Module


class PixelUnshuffle(_PixelUnshuffle, Module):
    """Turn each square of pixels into one pixel with more channels, as `torch.nn.PixelUnshuffle`.

    The inverse of equation 4 of
    [[arXiv:1609.05158] Real-Time Super-Resolution](https://arxiv.org/abs/1609.05158).

    Args:
        downscale_factor: The side of the square, in pixels.

    Receives:
        x (Float[Tensor, "batch channels factor*height factor*width"]): The input.

    Returns:
        Float[Tensor, "batch channels*factor*factor height width"]: The output.
    """

    def __init__(self, downscale_factor: int) -> None:
        super().__init__(downscale_factor)
