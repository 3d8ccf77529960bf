"""Where full-size checkpoints are, and the table of what was compared."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside the tests, which are no package

Compare = Callable[..., None]


@pytest.fixture(scope="session")
def checkpoints_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints are written: `REFINERS_PARITY_DIR`, to keep them, or a temporary folder."""
    folder = os.environ.get("REFINERS_PARITY_DIR")
    path = Path(folder) if folder else tmp_path_factory.mktemp("checkpoints")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
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
