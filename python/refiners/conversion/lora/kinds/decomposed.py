"""Updates of direction and magnitude: DoRA."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.hadamard import Hadamard, make_hadamard
from refiners.conversion.lora.kinds.kind import NUMBERS, Kind
from refiners.conversion.lora.kinds.kronecker import Kronecker, make_kronecker
from refiners.conversion.lora.kinds.low_rank import LowRank, joined
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import Decomposition, LayerUpdate, LowRankFactors, WeightFactors, WeightUpdate
from refiners.fluxion.layers import Conv2d, Linear, WeightedModule

_ANY, _ROWS = "dora_scale", "magnitude"  # of LyCORIS, of rows or columns by its shape, and of PEFT, of rows
_DIRECTIONS: tuple[Kind, ...] = (Hadamard(), Kronecker(), LowRank())


class Decomposed(Kind):
    """The update to `m · (W + D) / ‖W + D‖`, where D is of another kind; see `Decomposition`.

    The multiplier of the file is one of D, and part of the lengths. That of the user is one of the whole update: at 0
    the layer is what it was.
    """

    roles = (*(role for kind in _DIRECTIONS for role in kind.roles), _ANY, _ROWS)

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return "DoRA"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return _ANY in roles or _ROWS in roles

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        return _direction(tensors).rank(tensors)

    def missing(self, roles: Collection[Role]) -> Role | None:
        return _direction(roles).missing(roles)

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        rest = {role: size for role, size in shapes.items() if role not in (_ANY, _ROWS)}
        direction = _direction(shapes)
        stray = next((role for role in rest if role not in (*direction.roles, *NUMBERS)), None)
        if stray is not None:
            return f"{stray} is not one of its tensors"
        problem = direction.problem_of_shapes(rest, shape)
        if problem is not None:
            return problem
        if _ANY in shapes and _ROWS in shapes:
            return "there must be one tensor of magnitudes"
        if shape is not None and is_of_inputs(shapes, shape) is None:
            return f"there must be one magnitude for each row or column of the weight, which is {tuple(shape)}"
        if len(shapes.get("up", ())) == 4 and shapes["up"][2:] != (1, 1):
            return "the second convolution must be of 1×1"
        return None

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return _direction(roles).scaled(roles)

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        assert isinstance(layer, (Linear, Conv2d))
        rest = {role: tensor for role, tensor in tensors.items() if role not in (_ANY, _ROWS)}
        magnitude = tensors[_ANY if _ANY in tensors else _ROWS].flatten()
        of_inputs = is_of_inputs({role: tensor.shape for role, tensor in tensors.items()}, layer.weight.shape)
        return WeightUpdate(name, layer, Decomposition(_factors(rest, layer), magnitude, bool(of_inputs)))


def _direction(roles: Collection[Role]) -> Kind:
    return next((kind for kind in _DIRECTIONS if kind.is_told_by(roles)), _DIRECTIONS[-1])


def _factors(tensors: Mapping[Role, Tensor], layer: Linear | Conv2d) -> WeightFactors:
    kind = _direction(tensors)
    if isinstance(kind, Hadamard):
        return make_hadamard(tensors, layer)
    if isinstance(kind, Kronecker):
        return make_kronecker(tensors, layer)
    down, up = tensors["down"], tensors["up"].flatten(1)
    if "mid" in tensors:
        down = joined(tensors["mid"], down)
    return LowRankFactors(layer, down.reshape(down.shape[0], *layer.weight.shape[1:]), up)


def is_of_inputs(shapes: Mapping[Role, Size], weight: Size) -> bool | None:
    """Tell the lengths of the columns of a weight from those of its rows; `None` if they are neither."""
    magnitude = shapes[_ANY if _ANY in shapes else _ROWS]
    count = magnitude.numel()
    if max(magnitude, default=1) != count:
        return None
    if _ROWS in shapes or len(magnitude) < 2:
        return False if count == weight[0] else None
    return False if magnitude[0] == weight[0] else True if magnitude[1] == weight[1] else None
