"""Products of two matrices, or of two or three convolutions: LoRA, and LoCon."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Size, Tensor, nn

import refiners.fluxion.layers as fl
from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.kind import NUMBERS, Kind
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import Conv2dLora, LayerUpdate, LinearLora


class LowRank(Kind):
    """The update `up(down(x))`, or `up(mid(down(x)))`.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), section 4.1, and for convolutions
    [[arXiv:2309.14859] LyCORIS](https://arxiv.org/abs/2309.14859), section 3.2, where `mid` is the core of a Tucker
    decomposition. A linear layer is a convolution of 1×1: files have either for the other.
    """

    roles = ("down", "up", "mid")
    required = ("down", "up")

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        is_large = any(kernel_of(info.shape) != (1, 1) for role, info in tensors.items() if role not in NUMBERS)
        return "LoCon" if is_large else "LoRA"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return "down" in roles or "up" in roles

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        down = tensors.get("down")
        return None if down is None or len(down.shape) == 0 else down.shape[0]

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        return _problem_of_shapes(shapes["down"], shapes["up"], shapes.get("mid"), shape)

    def layer_problem(self, layer: fl.WeightedModule) -> str | None:
        if not isinstance(layer, fl.Conv2d):
            return super().layer_problem(layer)
        square = all(isinstance(each, tuple) and len(set(each)) == 1 for each in (layer.stride, layer.padding))
        if not square or layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
            return f"updates of a convolution like this are not supported: {layer}"
        return None

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ("up",)

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: fl.WeightedModule) -> LayerUpdate:
        down, up = tensors["down"], tensors["up"]
        if "mid" in tensors:
            down = joined(tensors["mid"], down)
        if isinstance(layer, fl.Linear):
            return LinearLora.from_weights(name, down=_as_matrix(down), up=_as_matrix(up))
        assert isinstance(layer, fl.Conv2d)
        down, up = _as_convolution(down), _as_convolution(up)
        sizes = (down.shape[2], up.shape[2])
        steps, padding = layer.stride, cast("tuple[int, int]", layer.padding)
        lora = Conv2dLora(
            name,
            in_channels=down.shape[1],
            out_channels=up.shape[0],
            rank=down.shape[0],
            kernel_size=sizes,
            stride=(steps[0], 1),
            padding=(padding[0], 0) if sizes[1] == 1 else (0, padding[0]),
            device="meta",
        )
        lora.down.weight, lora.up.weight = nn.Parameter(down.contiguous()), nn.Parameter(up.contiguous())
        return lora


def _problem_of_shapes(down: Size, up: Size, mid: Size | None, shape: Size | None) -> str | None:
    if any(len(size) not in (2, 4) or 0 in size for size in (down, up, *([] if mid is None else [mid]))):
        return "shapes must be those of linear layers or convolutions"
    if mid is None and down[0] != up[1]:
        return "down and up must have one rank"
    if mid is not None and (mid[1] != down[0] or mid[0] != up[1]):
        return "down, mid and up must fit together"
    kernels = (kernel_of(down), kernel_of(up)) if mid is None else (kernel_of(mid), kernel_of(down), kernel_of(up))
    large = [kernel for kernel in kernels if kernel != (1, 1)]
    if len(large) > 1 or (large and large[0][0] != large[0][1]):
        return "one convolution may be larger than 1×1, and must be square"
    if mid is not None and large and kernels[0] == (1, 1):
        return "of three convolutions the middle one must be the larger one"
    if shape is None:
        return None
    if up[0] != shape[0] or down[1] != shape[1] or (large[0] if large else (1, 1)) != kernel_of(shape):
        return f"shapes do not fit the layer's weight, which is {tuple(shape)}"
    return None


def joined(mid: Tensor, down: Tensor) -> Tensor:
    """Give the one convolution that one after another of 1×1 is."""
    joined = torch.einsum("mrhw,ri->mihw", _as_convolution(mid), down.flatten(1)).contiguous()
    if not joined.is_meta and not torch.isfinite(joined).all():
        raise ValueError(f"the product of mid and down is not finite in {joined.dtype}")
    return joined


def kernel_of(shape: Size) -> tuple[int, int]:
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)


def _as_matrix(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else weight.flatten(1)


def _as_convolution(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 4 else weight[:, :, None, None]
