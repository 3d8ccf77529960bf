"""Maxima over windows."""

from __future__ import annotations

from torch.nn import MaxPool1d as _MaxPool1d, MaxPool2d as _MaxPool2d

from refiners.fluxion.layers.module import Module


class MaxPool1d(_MaxPool1d, Module):
    """Maximum over windows of a sequence, as `torch.nn.MaxPool1d`.

    Args:
        kernel_size: The size of the window.
        stride: The step between two windows (default: the size of the window).
        padding: How many elements of minus infinity are added on each side.
        dilation: The distance between two elements of a window.
        return_indices: Whether to return the positions of the maxima, too.
        ceil_mode: Whether a last incomplete window counts.

    Receives:
        x (Float[Tensor, "batch channels in_length"]): The input.

    Returns:
        Float[Tensor, "batch channels out_length"]: The maxima.
    """

    def __init__(
        self,
        kernel_size: int,
        stride: int | None = None,
        padding: int = 0,
        dilation: int = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


class MaxPool2d(_MaxPool2d, Module):
    """Maximum over windows of an image, as `torch.nn.MaxPool2d`.

    Args:
        kernel_size: The size of the window, or its height and width.
        stride: The step between two windows (default: the size of the window).
        padding: How many pixels of minus infinity are added on each side.
        dilation: The distance between two pixels of a window.
        return_indices: Whether to return the positions of the maxima, too.
        ceil_mode: Whether a last incomplete window counts.

    Receives:
        x (Float[Tensor, "batch channels in_height in_width"]): The input.

    Returns:
        Float[Tensor, "batch channels out_height out_width"]: The maxima.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = (0, 0),
        dilation: int | tuple[int, int] = (1, 1),
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
