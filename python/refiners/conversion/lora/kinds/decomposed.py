"""Updates of direction and magnitude: DoRA."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.hadamard import Hadamard, make_hadamard
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.lora.kinds.kronecker import Kronecker, make_kronecker
from refiners.conversion.lora.kinds.low_rank import LowRank
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import Decomposition, LayerUpdate, LowRankFactors, WeightFactors, WeightUpdate
from refiners.fluxion.layers import Conv2d, Linear, WeightedModule

_MAGNITUDE = "dora_scale"
_DIRECTIONS: tuple[Kind, ...] = (Hadamard(), Kronecker(), LowRank())


class Decomposed(Kind):
    """The update to `m · (W + D) / ‖W + D‖`, where D is of another kind; see `Decomposition`.

    The multiplier of the file is one of D, and part of the lengths. That of the user is one of the whole update: at 0
    the layer is what it was.
    """

    roles = (*(role for kind in _DIRECTIONS for role in kind.roles if role != "mid"), _MAGNITUDE)

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return "DoRA"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return _MAGNITUDE in roles

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        return _direction(tensors).rank(tensors)

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        rest = {role: size for role, size in shapes.items() if role != _MAGNITUDE}
        problem = _direction(shapes).problem_of_shapes(rest, shape)
        if problem is None and shape is not None and _axis(shapes[_MAGNITUDE], shape) is None:
            problem = f"there must be one magnitude for each row or column of the weight, which is {tuple(shape)}"
        if problem is None and len(shapes.get("up", ())) == 4 and shapes["up"][2:] != (1, 1):
            problem = "the second convolution must be of 1×1"
        return problem

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return _direction(roles).scaled(roles)

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        assert isinstance(layer, (Linear, Conv2d))
        rest = {role: tensor for role, tensor in tensors.items() if role != _MAGNITUDE}
        magnitude = tensors[_MAGNITUDE]
        of_inputs = _axis(magnitude.shape, layer.weight.shape) == 1
        return WeightUpdate(name, layer, Decomposition(_factors(rest, layer), magnitude.flatten(), of_inputs))


def _direction(roles: Collection[Role]) -> Kind:
    return next((kind for kind in _DIRECTIONS if kind.is_told_by(roles)), _DIRECTIONS[-1])


def _factors(tensors: Mapping[Role, Tensor], layer: Linear | Conv2d) -> WeightFactors:
    kind = _direction(tensors)
    if isinstance(kind, Hadamard):
        return make_hadamard(tensors, layer)
    if isinstance(kind, Kronecker):
        return make_kronecker(tensors, layer)
    down, up = tensors["down"], tensors["up"].flatten(1)
    return LowRankFactors(layer, down.reshape(down.shape[0], *layer.weight.shape[1:]), up)


def _axis(magnitude: Size, weight: Size) -> int | None:
    """Tell whether lengths are those of the rows of a weight, 0, or of its columns, 1."""
    sizes = [size for size in magnitude if size != 1] or [1]
    if len(sizes) != 1 or sizes[0] not in weight[:2]:
        return None
    if len(magnitude) > 1 and weight[0] == weight[1]:
        return 0 if magnitude[0] == weight[0] or (sizes == [weight[0]] and magnitude[1] != weight[1]) else 1
    return 0 if sizes[0] == weight[0] else 1
