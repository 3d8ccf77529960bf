"""Channels multiplied by learned numbers: IA³."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import ChannelFactors, LayerUpdate, WeightUpdate
from refiners.fluxion.layers import Conv2d, Linear, WeightedModule


class LycorisRescaled(Kind):
    """The update of each channel by a multiple of it, as LyCORIS has it: a flag tells those of inputs."""

    roles = ("ia3_w", "on_input")
    flags = ("on_input",)
    required = ("ia3_w",)

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return "IA3"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return "on_input" in roles

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        if shapes["on_input"].numel() != 1:
            return "the flag 'on_input' must be one value"
        return _problem_of_factors(shapes["ia3_w"], shape)

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ()

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        assert isinstance(layer, (Linear, Conv2d))
        of_inputs = bool(tensors["on_input"].item())
        return WeightUpdate(name, layer, ChannelFactors(layer, tensors["ia3_w"].flatten(), of_inputs))


class PeftRescaled(Kind):
    """The update to channels times numbers, as PEFT has it, bias included.

    Those of a linear layer have the shape [out, 1] or [1, in]. Those of a convolution have one shape for both: where
    either could be meant they are those of what it returns, which PEFT takes for all but its feed-forward layers, if
    nothing says which layers these are.

    Args:
        of_inputs: Whether those of a convolution are of what it gets, if that is known.
    """

    roles = ("ia3_l",)
    less_one = ("ia3_l",)

    def __init__(self, of_inputs: bool | None = None) -> None:
        self.of_inputs = of_inputs

    def told(self, of_inputs: bool | None) -> Kind:
        return PeftRescaled(of_inputs)

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return "IA3"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return "ia3_l" in roles

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        numbers = shapes["ia3_l"]
        problem = _problem_of_factors(numbers, shape)
        if problem is None and shape is not None and numbers.numel() != shape[self._is_of_inputs(numbers, shape)]:
            problem = f"there must be one factor for each row or column of the weight, which is {tuple(shape)}"
        return problem

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ()

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        assert isinstance(layer, (Linear, Conv2d))
        factors = tensors["ia3_l"]
        of_inputs = self._is_of_inputs(factors.shape, layer.weight.shape)
        return WeightUpdate(name, layer, ChannelFactors(layer, factors.flatten(), of_inputs, with_bias=True))

    def _is_of_inputs(self, numbers: Size, weight: Size) -> bool:
        if len(weight) == 2:
            return len(numbers) > 1 and numbers[0] == 1
        return numbers.numel() != weight[0] if self.of_inputs is None else self.of_inputs


def _problem_of_factors(factors: Size, shape: Size | None) -> str | None:
    sizes = [size for size in factors if size != 1]
    if len(sizes) > 1:
        return "there must be one factor for each channel"
    if shape is not None and factors.numel() not in shape[:2]:
        return f"there must be one factor for each row or column of the weight, which is {tuple(shape)}"
    return None
