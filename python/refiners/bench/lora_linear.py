"""`lora_linear` on one layer, against the layer alone and against the operations one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refiners.bench.measure import Candidate, Measurement, Plan, compare, make_flush, make_timer
from refiners.bench.shapes import LinearShape
from refiners.ops import lora_linear, prepare_lora_block

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}  # of the norm; a kernel that is wrong is off by far more
_SCALE = 0.5


class Problem(NamedTuple):
    """A layer, the rank of its update, and where it runs."""

    shape: LinearShape
    rank: int
    dtype: str
    device: str


class Result(NamedTuple):
    """The figures of `bare`, `lora_linear` and `separate`, in this order."""

    problem: Problem
    difference: float
    measurements: list[Measurement]


def make_candidates(problem: Problem) -> list[Candidate]:
    """Give the three candidates, on the same random inputs."""
    shape, dtype = problem.shape, DTYPES[problem.dtype]
    torch.manual_seed(0)

    def random(*size: int, shrink: int = 1) -> Tensor:
        return (torch.randn(size, device=problem.device) * shrink**-0.5).to(dtype)

    x = random(shape.rows, shape.in_features)
    weight = random(shape.out_features, shape.in_features, shrink=shape.in_features)
    bias = random(shape.out_features) if shape.bias else None
    down = random(problem.rank, shape.in_features, shrink=shape.in_features)
    up = random(shape.out_features, problem.rank, shrink=problem.rank)
    scale = torch.full((1,), _SCALE, device=problem.device)
    block = prepare_lora_block(weight, [up])
    return [
        Candidate("bare", lambda: F.linear(x, weight, bias)),
        Candidate("lora_linear", lambda: lora_linear(x, weight, bias, [down], [up], scale, block)),
        # The tree of a low-rank adapter, run layer by layer: Sum(Linear, Chain(Linear, Linear, Multiply)).
        Candidate("separate", lambda: F.linear(x, weight, bias) + F.linear(F.linear(x, down), up) * _SCALE),
    ]


def measure(problem: Problem, plan: Plan) -> Result:
    """Check that the operator and the separate operations agree, then time the candidates with cold caches.

    Raises:
        RuntimeError: If they do not agree: the speed of a wrong result means nothing.
    """
    with torch.no_grad():
        candidates = make_candidates(problem)
        difference = _relative_difference(candidates[1], candidates[2])
        if not difference <= _TOLERANCES[problem.dtype]:
            raise RuntimeError(f"lora_linear is wrong: it differs from separate operations by {difference:.2g}")
        timer, flush = make_timer(problem.device), make_flush(problem.device)
        return Result(problem, difference, compare(candidates, timer, plan, flush))


def _relative_difference(candidate: Candidate, reference: Candidate) -> float:
    actual, expected = candidate.run(), reference.run()
    assert isinstance(actual, Tensor) and isinstance(expected, Tensor)
    return float(((actual.float() - expected.float()).norm() / expected.float().norm()).item())  # pyright: ignore[reportUnknownArgumentType]


def flops(problem: Problem, bare: bool) -> int:
    """Count the operations: a multiply and an add each."""
    shape = problem.shape
    update = 0 if bare else problem.rank * (shape.in_features + shape.out_features)
    return 2 * shape.rows * (shape.in_features * shape.out_features + update)


def bytes_moved(problem: Problem, bare: bool) -> int:
    """Count the least traffic: each input read once, the output written once."""
    shape = problem.shape
    features = shape.in_features + shape.out_features
    elements = shape.rows * features + shape.in_features * shape.out_features + shape.bias * shape.out_features
    return (elements + (0 if bare else problem.rank * features)) * torch.finfo(DTYPES[problem.dtype]).bits // 8
