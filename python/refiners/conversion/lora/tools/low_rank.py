"""The nearest matrices of low rank."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

_LONG = 2  # the ratio of sides from which on a matrix is made square first


class Truncated(NamedTuple):
    """A matrix of low rank, `up · down`.

    Attributes:
        down: Shape [rank, in].
        up: Shape [out, rank].
        kept: The share of the energy, the sum of the squares, of the matrix that it is made of.
    """

    down: Float[Tensor, "rank in_features"]
    up: Float[Tensor, "out_features rank"]
    kept: float


class Bound(NamedTuple):
    """How much of a matrix to keep.

    Attributes:
        rank: The rank, or the largest one (default: any).
        energy: The share of the energy to keep at least, by the smallest rank that does (default: all that the rank
            allows).
    """

    rank: int | None = None
    energy: float | None = None

    @classmethod
    def given(cls, rank: int | None, energy: float | None) -> Bound:
        """Give a bound of which the rank or the energy must be given, or both.

        Raises:
            TypeError: If one is no number.
            ValueError: If there is neither, or one has a wrong value.
        """
        if rank is None and energy is None:
            raise ValueError("rank or energy must be given, or both")
        bound = cls(rank, energy)
        bound.check()
        return bound

    def check(self) -> None:
        """Raise `TypeError` or `ValueError` if this is no bound."""
        if self.rank is not None:
            check_number("rank", self.rank, whole=True)
            if self.rank < 1:
                raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.energy is not None:
            check_number("energy", self.energy)
            if not 0 < self.energy <= 1:
                raise ValueError(f"energy must be above 0, and at most 1, got {self.energy}")

    def of(self, values: Float[Tensor, " rank"]) -> tuple[int, float]:
        """Give the rank to keep by singular values, largest first, and the share of the energy that is in it."""
        squares = values.double().square()
        if not squares.any():
            return 1, 1.0
        shares = squares.cumsum(0) / squares.sum()
        rank = len(values) if self.rank is None else min(self.rank, len(values))
        if self.energy is not None:
            enough = int((shares < self.energy * (1 - 1e-12)).sum()) + 1  # sums are rounded: all of it is enough
            rank = min(rank, enough)
        return rank, float(shares[rank - 1])


def check_number(name: str, value: float, *, whole: bool = False) -> None:
    """Raise `TypeError` or `ValueError` if an argument is no finite number."""
    kind = (int,) if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be a {'whole ' if whole else ''}number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def truncate(matrix: Float[Tensor, "out_features in_features"], bound: Bound) -> Truncated:
    """Give the nearest matrix of a rank, by a singular value decomposition.

    No other of this rank is nearer, in the Frobenius norm or the spectral one: Eckart and Young, The approximation of
    one matrix by another of lower rank, Psychometrika 1, 1936. What is left are the other singular values. Each factor
    has a root of the singular values, so that numbers of 16 bits hold both.

    Args:
        matrix: The matrix, in float32 or float64.
        bound: Which rank.
    """
    height, width = matrix.shape
    if height > _LONG * width:
        flat = truncate(matrix.T, bound)
        return Truncated(flat.up.T, flat.down.T, flat.kept)
    if width > _LONG * height:  # a decomposition of a square matrix takes much less time than one of a long one
        rows, square = cast("tuple[Tensor, Tensor]", torch.linalg.qr(matrix.T))
        core = truncate(square.T, bound)
        return Truncated(core.down @ rows.T, core.up, core.kept)
    left, values, right = cast("tuple[Tensor, Tensor, Tensor]", torch.linalg.svd(matrix, full_matrices=False))
    rank, kept = bound.of(values)
    roots = values[:rank].sqrt()
    return Truncated(roots[:, None] * right[:rank], left[:, :rank] * roots, kept)


def truncate_product(
    down: Float[Tensor, "rank in_features"], up: Float[Tensor, "out_features rank"], bound: Bound
) -> Truncated:
    """Give the matrix of a lower rank that is nearest to `up · down`, which is not made.

    With the decompositions `up = Q₁·R₁` and `downᵀ = Q₂·R₂`, where Q have orthonormal columns, the singular values of
    `up · down` are those of the core `R₁·R₂ᵀ`, of the size of the rank.

    Args:
        down: The second factor, in float32 or float64.
        up: The first factor, in the same.
        bound: Which rank.
    """
    columns, upper = cast("tuple[Tensor, Tensor]", torch.linalg.qr(up))
    rows, other = cast("tuple[Tensor, Tensor]", torch.linalg.qr(down.T))
    core = truncate(upper @ other.T, bound)
    return Truncated(core.down @ rows.T, columns @ core.up, core.kept)
