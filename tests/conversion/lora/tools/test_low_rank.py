"""The nearest matrix of a rank, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from refiners.conversion.lora.tools.low_rank import Bound, Truncated, truncate, truncate_product

SHAPES = [(12, 20), (20, 12), (16, 16), (6, 40), (40, 6), (1, 9), (9, 1)]


def error_of(matrix: Tensor, found: Truncated) -> float:
    return (matrix - found.up @ found.down).square().sum().item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 5, 16, 99])
def test_the_error_is_the_tail_of_the_singular_values(rank: int, shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    found = truncate(matrix, Bound(rank))
    kept = min(rank, *shape)
    assert found.down.shape == (kept, shape[1]) and found.up.shape == (shape[0], kept)
    assert error_of(matrix, found) == pytest.approx(values[kept:].square().sum().item(), rel=1e-9, abs=1e-20)
    assert found.kept == pytest.approx((values[:kept].square().sum() / values.square().sum()).item())


@pytest.mark.parametrize("sizes", [(12, 20, 6), (12, 20, 30), (4, 40, 8), (40, 4, 8)], ids=str)
@pytest.mark.parametrize("rank", [2, 5])
def test_a_product_is_truncated_as_its_matrix(rank: int, sizes: tuple[int, int, int]) -> None:
    rows, columns, inner = sizes
    down, up = torch.randn(inner, columns, dtype=torch.float64), torch.randn(rows, inner, dtype=torch.float64)
    found, expected = truncate_product(down, up, Bound(rank)), truncate(up @ down, Bound(rank))
    torch.testing.assert_close(found.up @ found.down, expected.up @ expected.down)
    assert found.kept == pytest.approx(expected.kept) and found.down.shape == expected.down.shape


@pytest.mark.parametrize(
    ("rank", "energy", "expected"),
    [(None, 0.5, 1), (None, 0.9, 2), (None, 0.91, 3), (None, 1.0, 3), (2, 1.0, 2), (4, 0.6, 1), (2, None, 2)],
)
def test_as_low_a_rank_as_keeps_the_energy(rank: int | None, energy: float | None, expected: int) -> None:
    values = torch.tensor([60.0, 30.0, 10.0, 0.0], dtype=torch.float64).sqrt()  # shares of 0.6, 0.9, 1 and 1
    assert Bound(rank, energy).of(values)[0] == expected


def test_nothing_is_of_rank_1() -> None:
    found = truncate(torch.zeros(3, 4), Bound(2))
    assert found.down.shape == (1, 4) and error_of(torch.zeros(3, 4), found) == 0 and found.kept == 1


@pytest.mark.parametrize(
    ("rank", "energy", "error", "message"),
    [
        (0, None, ValueError, "rank must be at least 1, got 0"),
        (1.5, None, TypeError, "rank must be a whole number, got float"),
        (True, None, TypeError, "rank must be a whole number, got bool"),
        (None, 0.0, ValueError, "energy must be above 0, and at most 1, got 0.0"),
        (None, 1.1, ValueError, "energy must be above 0, and at most 1, got 1.1"),
        (None, float("nan"), ValueError, "energy must be finite, got nan"),
        (None, "all", TypeError, "energy must be a number, got str"),
    ],
)
def test_a_bound_that_is_none(rank: Any, energy: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Bound(rank, energy).check()
