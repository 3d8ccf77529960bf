"""The updates of layers: what they have in common, and those of any kind but low rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.checks import check_scale
from refiners.fluxion.adapters.lora.factors import LayerChange
from refiners.fluxion.adapters.lora.region import Region
from refiners.fluxion.layers.module import twin

Scale: TypeAlias = float | Tensor | Region
"""A multiplier: for all, for each sample [batch] or row [batch, tokens], or by the place in the image."""


class LayerUpdate(fl.Chain, ABC):
    """A change of what a layer returns, with a name and a multiplier. The multiplication is the last of its layers.

    Attributes:
        name: What the update is called where several share a layer.
        has_places: Whether what the layer returns may lie on places of the image, for multipliers that depend on them.
    """

    name: str
    has_places: bool = True
    _scale: Scale
    _factor: float = 1.0

    @abstractmethod
    def is_compatible(self, layer: fl.WeightedModule, /) -> bool:
        """Whether the update can be added to a layer."""

    @abstractmethod
    def differences(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give the changes of the parameters of the layer by their names, for a scale of 1.

        Args:
            parameters: What the layer has without updates, in the dtype to compute in.
        """

    def check_mergeable(self, layer: fl.WeightedModule) -> None:
        """Raise `ValueError` if the update is none of the parameters of a layer."""

    @property
    def uses_weight(self) -> bool:
        """Whether the change is made of the weight of the layer, and is another one for another weight."""
        return False

    @property
    def scale(self) -> Scale:
        """The multiplier: a number, a tensor of shape [batch] or [batch, tokens] with one for each row, or a region.

        Raises:
            TypeError: If it is set to something else.
            ValueError: If it is set to one that is not finite; a tensor is read only on the CPU.
        """
        return self._scale

    @scale.setter
    def scale(self, value: Scale) -> None:
        check_scale(self.name, value)
        self._multiply(value, self._factor)

    @property
    def factor(self) -> float:
        """A second multiplier, by which users of sets of updates weigh each of them: 1, if nobody does."""
        return self._factor

    @factor.setter
    def factor(self, value: float) -> None:
        self._multiply(self._scale, value)

    @property
    def total_scale(self) -> float | Tensor | Region:
        """What the update is multiplied by: `scale * factor`, at the places that the layer has."""
        return self._product(self._scale, self._factor)

    def _multiply(self, scale: Scale, factor: float) -> None:
        if isinstance(scale, Real) and not isinstance(scale, (int, float)):
            scale = float(scale)  # those of numpy
        state: dict[str, Any] = vars(self)
        multiply = next((child for child in state["_modules"].values() if isinstance(child, fl.Multiply)), None)
        if multiply is None:
            multiply = self.ensure_find(fl.Multiply)
        # Past torch's bookkeeping: sets have a thousand updates.
        multiply.__dict__["scale"] = self._product(scale, factor)
        state["_scale"], state["_factor"] = scale, factor

    def _product(self, scale: Scale, factor: float) -> float | Tensor | Region:
        if isinstance(scale, Region):
            region = scale if factor == 1 else scale.times(factor)
            return region if self.has_places else region.elsewhere
        return scale if factor == 1 else scale * factor

    def _post_structural_copy(self, source: LayerUpdate) -> None:
        # The scale belongs to the copy: the layers that apply it must not be shared.
        for child in self:
            if isinstance(child, fl.Multiply):
                self.replace(child, twin(child))


class WeightUpdate(LayerUpdate):
    """Compute `scale * change(x)`, the update of one layer by a change that was made for it.

    Args:
        name: What the update is called where several share a layer.
        layer: The layer.
        change: The change of what it returns: a `LayerChange`, or a layer like it with the differences as weights.
        scale: The multiplier (dimensionless).

    Receives:
        x (Float[Tensor, "batch *shape"]): The input of the layer.

    Returns:
        Float[Tensor, "batch *out_shape"]: The update of its output.
    """

    def __init__(self, name: str, /, layer: fl.WeightedModule, change: fl.Module, scale: float = 1.0) -> None:
        check_scale(name, scale)
        self.name = name
        self._layer = (layer,)  # no child of the update
        self._scale = scale
        super().__init__(change, fl.Multiply(scale))

    def is_compatible(self, layer: fl.WeightedModule, /) -> bool:
        return layer is self._layer[0]

    def differences(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if isinstance(self.change, LayerChange):
            return self.change.differences(parameters)
        return {name: parameter.to(parameters["weight"].dtype) for name, parameter in self.change.named_parameters()}

    @property
    def change(self) -> fl.Module:
        """The change."""
        return self[0]

    @property
    def uses_weight(self) -> bool:
        return isinstance(self.change, LayerChange) and self.change.uses_weight

    @property
    def uses_base(self) -> bool:
        """Whether the change is made of what the layer returns without its bias."""
        return isinstance(self.change, LayerChange) and self.change.uses_base

    def from_base(self, x: Float[Tensor, "batch *shape"], base: Float[Tensor, "batch *out_shape"]) -> Tensor:
        """Compute the update by what the layer returns without its bias."""
        assert isinstance(self.change, LayerChange)
        return self.ensure_find(fl.Multiply)(self.change.from_base(x, base))
