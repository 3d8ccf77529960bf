"""Whole differences of weights and biases."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Size, Tensor, nn

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import LayerUpdate, WeightUpdate
from refiners.fluxion.adapters.lora.attach import MERGED
from refiners.fluxion.layers import Conv2d, GroupNorm, LayerNorm, Linear, WeightedModule
from refiners.fluxion.layers.module import twin

_LAYERS = (Linear, Conv2d, LayerNorm, GroupNorm)


class Difference(Kind):
    """The difference of a weight, and of a bias: what a layer like it returns with these. There is no alpha.

    Args:
        title: What users call it.
        weight: The tensor that is added to the weight.
        bias: The tensor that is added to the bias.
    """

    dimensions = (1, 2, 4)

    def __init__(self, title: str, weight: Role, bias: Role) -> None:
        self.title = title
        self.weight = weight
        self.bias = bias
        self.roles = (weight, bias)

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return self.title

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return self.weight in roles or self.bias in roles

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        weight, bias = shapes.get(self.weight), shapes.get(self.bias)
        if shape is None:
            return None
        if weight is not None and tuple(weight) not in {tuple(shape), (*shape, *[1] * (4 - len(shape)))}:
            return f"shapes do not fit the layer's weight, which is {tuple(shape)}"
        if bias is not None and tuple(bias) != (shape[0],):
            return f"shapes do not fit the layer's bias, which has {shape[0]} elements"
        return None

    def layer_problem(self, layer: WeightedModule) -> str | None:
        if not isinstance(layer, _LAYERS):
            return (
                f"the layer is a {type(layer).__name__}, expected one of {', '.join(each.__name__ for each in _LAYERS)}"
            )
        return None

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ()

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        weight, bias = tensors.get(self.weight), tensors.get(self.bias)
        weight = torch.zeros_like(layer.weight) if weight is None else weight.reshape(layer.weight.shape)
        change = twin(layer)
        vars(change).pop(MERGED, None)  # what is merged into the layer is not merged into the difference
        if bias is None and isinstance(layer, (LayerNorm, GroupNorm)):
            bias = torch.zeros_like(weight)  # these always have one
        change._parameters.update(weight=nn.Parameter(weight), bias=None if bias is None else nn.Parameter(bias))
        if isinstance(change, Conv2d):
            change.use_bias = bias is not None
        return WeightUpdate(name, layer, change)


DIFFERENCES = (
    Difference("full difference", "diff", "diff_b"),
    Difference("norm difference", "w_norm", "b_norm"),
)
