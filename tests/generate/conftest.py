"""Small checkpoints with random weights."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory):
    """Write a small checkpoint of a kind as diffusers does, and give its folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    checkpoints = import_module("checkpoints")
    sys.path.pop(0)
    root = tmp_path_factory.mktemp("checkpoints")
    return lambda kind: checkpoints.write_folder(root / kind, checkpoints.small(getattr(checkpoints, kind)))
