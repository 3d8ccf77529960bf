"""Elementwise products of two matrices of low rank: LoHa."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import HADAMARD_ROLES, Role
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import HadamardFactors, LayerUpdate, WeightUpdate
from refiners.fluxion.layers import Conv2d, Linear, WeightedModule


class Hadamard(Kind):
    """The update `(w1_a · w1_b) ⊙ (w2_a · w2_b)`; see `refiners.fluxion.adapters.lora.HadamardFactors`."""

    roles = HADAMARD_ROLES
    required = HADAMARD_ROLES[:4]

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return "LoHa"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return any(role in roles for role in self.roles)

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        first = tensors.get("hada_w1_b")
        return first.shape[0] if first is not None and first.shape else None

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        products: list[tuple[int, ...]] = []
        for one in ("1", "2"):
            a, b = shapes[f"hada_w{one}_a"], shapes[f"hada_w{one}_b"]
            product = product_shape(a, b, shapes.get(f"hada_t{one}"), shape)
            if isinstance(product, str):
                return product
            products.append(product)
        if products[0] != products[1]:
            return "both products must have one shape"
        return None

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ("hada_w1_a",)

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        assert isinstance(layer, (Linear, Conv2d))
        return WeightUpdate(name, layer, make_hadamard(tensors, layer))


def make_hadamard(tensors: Mapping[Role, Tensor], layer: Linear | Conv2d) -> HadamardFactors:
    """Make the factors of a layer."""
    return HadamardFactors(layer, **{role.removeprefix("hada_"): tensor for role, tensor in tensors.items()})


def product_shape(a: Size, b: Size, core: Size | None, shape: Size | None) -> tuple[int, ...] | str:
    """Give the shape of a product of two matrices, or of a Tucker decomposition, or say what is wrong with them.

    Where the shape of the weight is known, that of the product must be it; else the kernel of a convolution may be a
    part of the second dimension.
    """
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b):
        return "the factors must be matrices"
    if core is None:
        if a[1] != b[0]:
            return "the factors must have one rank"
        product: tuple[int, ...] = (a[0], b[1])
        expected = None if shape is None else (shape[0], shape[1:].numel())
    else:
        if len(core) != 4 or core[0] != a[0] or core[1] != b[0]:
            return "the core and the factors must fit together"
        product = (a[1], b[1], core[2], core[3])
        expected = None if shape is None else tuple(shape)
    if expected is not None and product != expected:
        return f"shapes do not fit the layer's weight, which is {tuple(shape or ())}"
    return product
