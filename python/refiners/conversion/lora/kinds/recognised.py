"""The kinds of updates that are recognised, and cannot be attached yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import LayerUpdate
from refiners.fluxion.layers import WeightedModule


class Recognised(Kind):
    """A kind that is known by one of its tensors, and not supported.

    Args:
        title: What users call it.
        role: The tensor.
    """

    def __init__(self, title: str, role: Role) -> None:
        self.title = title
        self.role = role
        self.roles = (role,)

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return self.title

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return self.role in roles

    def problem(self, tensors: Mapping[Role, TensorInfo], shape: Size | None) -> str:
        return f"{self.title} is not supported yet"

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str:
        return f"{self.title} is not supported yet"

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ()

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        raise NotImplementedError(f"{self.title} is not supported yet")


RECOGNISED = (
    Recognised("OFT", "oft"),  # arXiv:2306.07280
    Recognised("GLoRA", "glora"),  # arXiv:2306.07967
    Recognised("LoRA with a bias", "lora_bias"),
    Recognised("LoRA with a sparse bias", "sparse_bias"),
    Recognised("LoRA of an embedding", "lora_embedding"),
    Recognised("embedding of a new word", "embedding"),
)
