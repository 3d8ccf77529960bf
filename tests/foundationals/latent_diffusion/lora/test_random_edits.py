"""Whatever is added, scaled, merged, saved and injected: a model computes the sum, and comes back at the end."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from random_edits import Pristine, RandomEdits, Reference
from tiny_models import make_tiny

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
KINDS = ["sd1", "sdxl"]
STEPS = 14


@cache
def reference(kind: str) -> Reference:
    return Reference(kind)


def edit(kind: str, dtype: torch.dtype, seeds: range, folder: Path) -> Counter[str]:
    """Edit one model again and again, and count the edits."""
    pristine = Pristine(make_tiny(kind).to(dtype=dtype))
    counts: Counter[str] = Counter()
    for seed in seeds:
        edits = RandomEdits(pristine, reference(kind).sets, seed, folder)
        try:
            edits.run(STEPS, reference(kind))
        except Exception as error:
            raise AssertionError("\n".join([f"seed {seed}: {type(error).__name__}: {error}", *edits.done])) from error
        counts += edits.counts()
    pristine.state.check_tree()
    return counts


CASES = [(kind, dtype) for kind in KINDS for dtype in DTYPES]
EDITS = (
    "add",
    "load",
    "remove",
    "scale",
    "merge",
    "unmerge",
    "reload",
    "replace",
    "rewrite",
    "inject",
    "eject",
    "refused:",
)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_some_random_edits(number: int, tmp_path: Path) -> None:
    counts = edit(*CASES[number], range(10 * number, 10 * number + 3), tmp_path)
    assert counts.total() > 20


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("REFINERS_ALL_CASES") != "1", reason="takes minutes: REFINERS_ALL_CASES=1")
@pytest.mark.parametrize("part", range(12))
def test_a_thousand_random_edits(part: int, tmp_path: Path) -> None:
    counts = edit(*CASES[part % len(CASES)], range(1000 + 84 * part, 1084 + 84 * part), tmp_path)
    assert min(counts[each] for each in EDITS) > 2
