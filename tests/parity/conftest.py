"""Where checkpoints are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside the tests, which are no package


@pytest.fixture(scope="session")
def checkpoints_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints are written: `REFINERS_PARITY_DIR`, to keep them, or a temporary folder."""
    folder = os.environ.get("REFINERS_PARITY_DIR")
    path = Path(folder) if folder else tmp_path_factory.mktemp("checkpoints")
    path.mkdir(parents=True, exist_ok=True)
    return path
