"""Several changes of a weight merged into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def trim(delta: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """Keep the largest numbers by magnitude, a share of them, and set the others to zero.

    Args:
        delta: The change.
        density: The share, of which at least one number is kept; those as large as the smallest one are kept, too.
    """
    count = max(1, round(density * delta.numel()))
    sizes = delta.abs()
    least = torch.kthvalue(sizes.flatten(), delta.numel() - count + 1).values
    return delta.where(sizes >= least, torch.zeros_like(delta))


def merge_ties(deltas: Sequence[Float[Tensor, "*shape"]], density: float) -> Float[Tensor, "*shape"]:
    """Trim changes, elect a sign for each number, and take the mean of those that have it.

    See [[arXiv:2306.01708] TIES-Merging](https://arxiv.org/abs/2306.01708), section 3.2 and algorithm 1, with λ = 1:
    the sign of a number is that of its sum over all trimmed changes, and the mean is that of the numbers of this sign,
    without those that are zero.

    Args:
        deltas: The changes, each with its multiplier.
        density: The share of each that is kept.
    """
    trimmed = [trim(delta, density) for delta in deltas]
    sign = torch.stack(trimmed).sum(dim=0).sign()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta in trimmed:
        agrees = delta.sign() == sign  # where the sum is zero, only zeros do
        total += delta.where(agrees, torch.zeros_like(delta))
        count += agrees
    return total / count.clamp_min(1)


def merge_dare(
    deltas: Sequence[Float[Tensor, "*shape"]], density: float, generator: Generator
) -> Float[Tensor, "*shape"]:
    """Drop numbers of each change at random, divide the others by the share that is kept, and add the changes.

    See [[arXiv:2311.03099] DARE](https://arxiv.org/abs/2311.03099), section 3.2, where the numbers are dropped with the
    probability p = 1 - density: each change is the same on average.

    Args:
        deltas: The changes, each with its multiplier.
        density: The probability that a number is kept.
        generator: Draws which, one uniform number for each, on the CPU: those of the first change first.
    """
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        drawn = torch.rand(delta.shape, generator=generator, device="cpu", dtype=torch.float32)
        total += delta * (drawn < density).to(delta.device) / density
    return total
