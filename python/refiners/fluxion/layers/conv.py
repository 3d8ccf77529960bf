"""Two-dimensional convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard, cast

import torch
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType
from torch.nn import Conv2d as _Conv2d, ConvTranspose2d as _ConvTranspose2d

from refiners.fluxion.layers.activations import SiLU
from refiners.fluxion.layers.chain.joints import Addition, joint
from refiners.fluxion.layers.module import Module, WeightedModule
from refiners.fluxion.layers.watched import is_watched
from refiners.ops import conv2d
from refiners.ops.transforms import is_autocast, requires_grad


class Conv2d(_Conv2d, WeightedModule):
    """Two-dimensional convolution, as `torch.nn.Conv2d`; mind the order of the arguments.

    It is computed by `refiners.ops.conv2d`.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels.
        kernel_size: The size of the kernel, or its height and width.
        stride: The step between two places of the kernel, in pixels.
        padding: How many pixels are added on each side, or `"same"` or `"valid"`.
        groups: In how many independent groups the channels are divided.
        use_bias: Whether there is a bias.
        dilation: The distance between two elements of the kernel, in pixels.
        padding_mode: What the added pixels are: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels in_height in_width"]): The input.

    Returns:
        Float[Tensor, "batch out_channels out_height out_width"]: The output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = (1, 1),
        padding: int | tuple[int, int] | str = (0, 0),
        groups: int = 1,
        use_bias: bool = True,
        dilation: int | tuple[int, int] = (1, 1),
        padding_mode: str = "zeros",
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=use_bias,
            padding_mode=cast(Any, padding_mode),  # torch checks it
            device=device,
            dtype=dtype,
        )
        self.use_bias = use_bias

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Where torch's layer calls the function, and where programs change what it does.
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(input, weight, bias)
        return conv2d(
            input,
            weight,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def convolve(
        self,
        x: Float[Tensor, "batch in_channels in_height in_width"],
        add: Float[Tensor, "batch out_channels"] | None = None,
        residual: Float[Tensor, "batch out_channels out_height out_width"] | None = None,
        silu: bool = False,
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Compute what the layer gives, and what follows it, at once; see `refiners.ops.conv2d`.

        It must be a plain one, as `is_plain_conv2d` says: no hooks are called.
        """
        return conv2d(
            x,
            self.weight,
            self.bias,
            add,
            residual,
            self.stride,
            cast("tuple[int, int]", self.padding),
            self.dilation,
            self.groups,
            silu,
        )

    def reset_parameters(self) -> None:
        """Draw the initial weights, unless they are on the meta device, where there is nothing to draw."""
        if not self.weight.is_meta:
            super().reset_parameters()


_CONV_FORWARD = Conv2d._conv_forward


def is_plain_conv2d(layer: Module) -> TypeGuard[Conv2d]:
    """Whether a layer is a convolution of a known kind at which nobody looks on: `Conv2d.convolve` may stand for it."""
    return (
        type(layer) is Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and "_conv_forward" not in layer.__dict__  # where programs change what it does
        and Conv2d._conv_forward is _CONV_FORWARD
        and not is_watched(layer)
    )


def can_add(layer: Conv2d, x: Tensor, other: Tensor) -> bool:
    """Whether a convolution of images can add something itself: the sum would be of the same dtype and device."""
    weight = layer.weight
    return (
        x.ndim == 4
        and x.dtype == other.dtype == weight.dtype
        and x.device == other.device == weight.device
        and not is_autocast(x)
    )


@joint(Conv2d, SiLU)
def _activated_convolution(convolution: Conv2d, activation: SiLU, x: Tensor) -> Tensor | None:
    if not is_plain_conv2d(convolution) or is_watched(activation):
        return None
    if torch.is_grad_enabled() and requires_grad(x, convolution.weight, convolution.bias):
        return None  # the gradient of both would convolve again
    return convolution.convolve(x, silu=True)


@joint(Conv2d, Addition)
def _summed_convolution(convolution: Conv2d, addition: Addition, x: Tensor) -> Tensor | None:
    if not is_plain_conv2d(convolution):
        return None
    residual = addition.value()
    shape = (x.shape[0], convolution.out_channels, *_sides(convolution, x))
    if type(residual) is not Tensor or residual.shape != shape or not can_add(convolution, x, residual):
        return None
    addition.is_done = True
    return convolution.convolve(x, residual=residual)


def _sides(convolution: Conv2d, x: Tensor) -> Iterator[int]:
    """Give height and width of the result."""
    padding = cast("tuple[int, int]", convolution.padding)
    steps = zip(x.shape[2:], convolution.kernel_size, convolution.stride, padding, convolution.dilation)
    return ((side + 2 * pad - gap * (size - 1) - 1) // step + 1 for side, size, step, pad, gap in steps)


class ConvTranspose2d(_ConvTranspose2d, WeightedModule):
    """Two-dimensional transposed convolution, as `torch.nn.ConvTranspose2d`; mind the order of the arguments.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels.
        kernel_size: The size of the kernel, or its height and width.
        stride: The step between two places of the kernel in the output, in pixels.
        padding: How many pixels are removed on each side of the output.
        output_padding: How many pixels are added to one side of the output.
        groups: In how many independent groups the channels are divided.
        use_bias: Whether there is a bias.
        dilation: The distance between two elements of the kernel, in pixels.
        padding_mode: Only `"zeros"`.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels in_height in_width"]): The input.

    Returns:
        Float[Tensor, "batch out_channels out_height out_width"]: The output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        use_bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            bias=use_bias,
            dilation=dilation,
            padding_mode=cast(Any, padding_mode),  # torch checks it
            device=device,
            dtype=dtype,
        )
        self.use_bias = use_bias

    def reset_parameters(self) -> None:
        """Draw the initial weights, unless they are on the meta device, where there is nothing to draw."""
        if not self.weight.is_meta:
            super().reset_parameters()
