"""Kronecker products: LoKr."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor

from refiners.conversion.lora.keys import KRONECKER_ROLES, Role
from refiners.conversion.lora.kinds.hadamard import product_shape
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.adapters.lora import KroneckerFactors, LayerUpdate, WeightUpdate
from refiners.fluxion.layers import Conv2d, Linear, WeightedModule


class Kronecker(Kind):
    """The update `w1 ⊗ w2`, each of them whole or in factors; see `refiners.fluxion.adapters.lora.KroneckerFactors`.

    Alpha is divided by the rank of the factors, and means nothing where both matrices are whole.
    """

    roles = KRONECKER_ROLES

    def name(self, tensors: Mapping[Role, TensorInfo]) -> str:
        return "LoKr"

    def is_told_by(self, roles: Collection[Role]) -> bool:
        return any(role in roles for role in self.roles)

    def rank(self, tensors: Mapping[Role, TensorInfo]) -> int | None:
        for role in ("lokr_w2_b", "lokr_w1_b"):
            if role in tensors and tensors[role].shape:
                return tensors[role].shape[0]
        return None

    def missing(self, roles: Collection[Role]) -> Role | None:
        lost = (f"lokr_w{one}" for one in "12" if not _has(roles, one))
        return next(lost, None)

    def problem_of_shapes(self, shapes: Mapping[Role, Size], shape: Size | None) -> str | None:
        sizes: list[tuple[int, ...]] = []
        for one in ("1", "2"):
            whole, a, b, core = (shapes.get(f"lokr_{role}{one}{end}") for role, end in (*_MATRICES, ("t", "")))
            if whole is not None and not (a is b is core is None):
                return f"'lokr_w{one}' is given whole and in factors"
            size = tuple(whole) if whole is not None else product_shape(a or Size(), b or Size(), core, None)
            if isinstance(size, str):
                return size
            sizes.append(size)
        small, large = sizes
        if len(small) != 2 or len(large) not in (2, 4) or 0 in (*small, *large):
            return "w1 must be a matrix, and w2 one or a convolution"
        if shape is None:
            return None
        kernel = tuple(shape[2:]) or (1, 1)
        if len(large) == 2:  # the kernel is a part of the second dimension
            large = (large[0], large[1] / Size(kernel).numel(), *kernel)
        if (small[0] * large[0], small[1] * large[1], *large[2:]) != (*shape[:2], *kernel):
            return f"shapes do not fit the layer's weight, which is {tuple(shape)}"
        return None

    def scaled(self, roles: Collection[Role]) -> Collection[Role]:
        return ("lokr_w1",) if "lokr_w1" in roles else ("lokr_w1_a",)

    def make(self, name: str, tensors: Mapping[Role, Tensor], layer: WeightedModule) -> LayerUpdate:
        assert isinstance(layer, (Linear, Conv2d))
        return WeightUpdate(name, layer, make_kronecker(tensors, layer))


_MATRICES = (("w", ""), ("w", "_a"), ("w", "_b"))


def _has(roles: Collection[Role], one: str) -> bool:
    return f"lokr_w{one}" in roles or (f"lokr_w{one}_a" in roles and f"lokr_w{one}_b" in roles)


def make_kronecker(tensors: Mapping[Role, Tensor], layer: Linear | Conv2d) -> KroneckerFactors:
    """Make the factors of a layer."""
    return KroneckerFactors(layer, **{role.removeprefix("lokr_"): tensor for role, tensor in tensors.items()})
