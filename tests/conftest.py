"""Fixtures of every test: each device that is here, the floating dtypes, and the same random numbers each time."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine, one test each."""
    return torch.device(request.param)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes that models run in, one test each."""
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start each test from the same random state, so that it fails alone as it fails in company."""
    torch.manual_seed(0)


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compare two tensors by the norm of their difference, and by its largest element in standard deviations.

    Each comparison is appended to the file `REFINERS_PARITY_TABLE`, if there is one.
    """

    def check(what: str, ours: Tensor, theirs: Tensor, norm: float = 1e-5, largest: float | None = 1e-4) -> None:
        assert ours.shape == theirs.shape
        difference = (ours.double() - theirs.double()).flatten()
        relative = (difference.norm() / theirs.double().norm()).item()
        element = (difference.abs().max() / theirs.double().std()).item()
        path = os.environ.get("REFINERS_PARITY_TABLE")
        if path and request.node.get_closest_marker("parity"):
            row = {"what": what, "shape": list(ours.shape), "norm": relative, "bound": norm, "largest": element}
            with Path(path).open("a") as file:
                file.write(json.dumps({**row, "largest_bound": largest}) + "\n")
        assert torch.isfinite(ours).all()
        assert relative <= norm, f"{what}: {relative:.2e} > {norm:.0e}"
        assert largest is None or element <= largest, f"{what}: {element:.2e} standard deviations > {largest:.0e}"

    return check


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `cuda` where there is no CUDA device, and `parity` where it was not asked for."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("parity") and os.environ.get("REFINERS_PARITY") != "1":
            item.add_marker(pytest.mark.skip(reason="full-size models: make parity"))
