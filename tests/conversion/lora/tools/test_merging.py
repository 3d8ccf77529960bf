"""Changes of a weight are merged as the papers have it, written again here number by number."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from refiners.conversion.lora.tools.merging import merge_dare, merge_ties, trim


def ties(deltas: list[list[float]], density: float) -> list[float]:
    """Algorithm 1 of arXiv:2306.01708, in loops."""
    trimmed: list[list[float]] = []
    for delta in deltas:
        count = max(1, round(density * len(delta)))
        largest = sorted(range(len(delta)), key=lambda i: -abs(delta[i]))[:count]
        trimmed.append([each if i in largest else 0.0 for i, each in enumerate(delta)])
    merged: list[float] = []
    for numbers in zip(*trimmed):
        total = sum(numbers)
        agreeing = [each for each in numbers if each * total > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_ties(count: int, density: float) -> None:
    deltas = [torch.randn(6, 11, dtype=torch.float64) for _ in range(count)]
    expected = ties([delta.flatten().tolist() for delta in deltas], density)
    merged = merge_ties(deltas, density)
    torch.testing.assert_close(merged.flatten(), torch.tensor(expected, dtype=torch.float64))
    assert merged.shape == (6, 11)


def test_numbers_that_cancel_are_zero() -> None:
    assert merge_ties([torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 2.0])], 1.0).tolist() == [0, 2]


def test_trim_keeps_the_largest() -> None:
    assert trim(torch.tensor([[0.1, -5.0], [3.0, 0.0]]), 0.5).tolist() == [[0, -5], [3, 0]]
    assert trim(torch.zeros(3), 0.5).tolist() == [0, 0, 0]


def test_dare() -> None:
    deltas = [torch.randn(7, 5, dtype=torch.float64) for _ in range(3)]
    generator, total = Generator().manual_seed(3), torch.zeros(7, 5, dtype=torch.float64)
    for delta in deltas:
        kept = torch.rand(7, 5, generator=generator) < 0.4
        total += torch.where(kept, delta / 0.4, 0.0)
    torch.testing.assert_close(merge_dare(deltas, 0.4, Generator().manual_seed(3)), total)
    torch.testing.assert_close(merge_dare(deltas, 1.0, Generator()), deltas[0] + deltas[1] + deltas[2])


def test_dare_is_right_on_average() -> None:
    generator, delta = Generator().manual_seed(0), torch.tensor([1.0, -2.0])
    mean = torch.stack([merge_dare([delta], 0.5, generator) for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, delta, rtol=0.1, atol=0)  # four standard deviations
