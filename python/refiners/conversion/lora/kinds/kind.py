"""What a kind of update has to say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import Role
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import LayerUpdate
from refiners.fluxion.layers import Conv2d, Linear, WeightedModule

NUMBERS = ("alpha", "scalar")


class Kind(ABC):
    """A way to change a layer by the tensors that a file has for it.

    Attributes:
        roles: What its tensors are for.
        flags: Those of them that need not be of floating point.
        required: Those of them that must be there.
        less_one: Those of them of which 1 is subtracted, before they are rounded to the dtype of the layer.
        dimensions: How many dimensions the weight of a layer may have.
    """

    roles: Collection[Role]
    flags: Collection[Role] = ()
    required: Collection[Role] = ()
    less_one: Collection[Role] = ()
    dimensions: Collection[int] = (2, 4)

    @abstractmethod
    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        """Say what users call it."""

    @abstractmethod
    def is_told_by(self, roles: Collection[Role]) -> bool:
        """Whether tensors of these roles are of this kind; kinds are asked in an order."""

    def problem(self, tensors: Mapping[Role, TensorInfo], shape: Size | None) -> str | None:
        """Say what is wrong with the tensors, by themselves and for a layer whose weight has a shape, if known."""
        for role, info in tensors.items():
            if role not in (*self.roles, *NUMBERS):
                first = role.rstrip("0123456789").rstrip("_")
                return (
                    f"{first} is given twice"
                    if first in (*self.roles, *NUMBERS)
                    else f"{role} is not one of its tensors"
                )
            if role in NUMBERS:
                if info.shape.numel() != 1:
                    return f"{role} must be one number, got shape {tuple(info.shape)}"
            elif role not in self.flags and not info.dtype.is_floating_point:
                return f"{role} is of {info.dtype}, expected floating point"
        if lost := self.missing(tensors):
            return f"the matrix {lost!r} is missing"
        if shape is not None and len(shape) not in self.dimensions:
            return f"the layer's weight is {tuple(shape)}, expected that of a Linear or Conv2d"
        problem = self.problem_of_shapes({role: info.shape for role, info in tensors.items()}, shape)
        if problem is None:
            return None
        sizes = (f"{role} {tuple(info.shape)}" for role, info in tensors.items() if role not in NUMBERS)
        return f"{problem}, got {', '.join(sizes)}"

    def missing(self, roles: Collection[Role]) -> Role | None:
        """Give the first tensor that must be there and is not."""
        return next((role for role in self.required if role not in roles), None)

    @abstractmethod
    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        """Say what is wrong with the shapes of the tensors; see `problem`."""

    def layer_problem(self, layer: WeightedModule) -> str | None:
        """Say why a layer can have no update of this kind, if so."""
        if not isinstance(layer, (Linear, Conv2d)):
            return f"the layer is a {type(layer).__name__}, expected Linear or Conv2d"
        if isinstance(layer, Conv2d) and layer.groups != 1:
            return f"updates of a convolution of several groups are not supported: {layer}"
        return None

    def told(self, of_inputs: bool | None) -> Kind:
        """Give the kind of which a configuration says whether inputs or outputs are meant, if it says so."""
        return self

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        """Give the inner dimension by which alpha is divided, if there is one."""
        return None

    @abstractmethod
    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        """Give the tensors to be multiplied by alpha / rank, of which the update is a linear function."""

    @abstractmethod
    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        """Make the update for a layer of tensors that have passed `problem`; those of `scaled` are multiplied."""
