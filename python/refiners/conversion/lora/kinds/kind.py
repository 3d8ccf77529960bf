"""What a kind of update has to say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from torch import Size, Tensor

from refiners.conversion.lora.keys import Role
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import Lora
from refiners.fluxion.layers import WeightedModule


class Kind(ABC):
    """A way to change a layer by the tensors that a file has for it."""

    @abstractmethod
    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        """Say what users call it."""

    @abstractmethod
    def is_told_by(self, roles: Collection[Role]) -> bool:
        """Whether tensors of these roles are of this kind; kinds are asked in an order."""

    @abstractmethod
    def problem(self, tensors: Mapping[Role, TensorInfo], shape: Size | None) -> str | None:
        """Say what is wrong with the tensors, by themselves and for a layer whose weight has a shape, if known."""

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        """Give the inner dimension, if there is one."""
        return None

    @abstractmethod
    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> Lora[Any]:
        """Make the update for a layer; the tensors have passed `problem`, and `up` has been multiplied by its scale."""
