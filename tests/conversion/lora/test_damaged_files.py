"""Damaged and odd files are loaded as they say, or refused with a clear error; the model is then what it was.

Each part runs in a process of limited memory; what is asked of a file is written down in `damaged_files.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_MOST_SECONDS = 1200  # a file that is never read to its end fails, however slow the machine is
PROGRAM = Path(__file__).with_name("damaged_files.py")


def run(folder: Path, kind: str, cases: range) -> dict[str, Any]:
    """Check some cases, and count what became of them."""
    command = [sys.executable, "-W", "error", PROGRAM, folder, kind, cases.start, cases.stop, cases.step]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=_MOST_SECONDS
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    complaints = [f"{line['case']}: {line['complaint']}" for line in lines if "complaint" in line]
    assert not complaints, "\n".join([f"{len(complaints)} complaints", *complaints[:10]])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        lines[-1]["cases"]
        == len(cases)
        == sum(lines[-1].get(each, 0) for each in ("attached", "attached by order", "error"))
    )
    return lines[-1]


@pytest.mark.slow
def test_some_damaged_files(tmp_path: Path) -> None:
    counts = run(tmp_path, "safetensors", range(0, 5000, 19))
    assert counts["error"] > 150 and counts["attached"] > 20


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("REFINERS_ALL_CASES") != "1", reason="takes minutes: REFINERS_ALL_CASES=1")
@pytest.mark.parametrize("part", range(4))
def test_five_thousand_damaged_files(part: int, tmp_path: Path) -> None:
    counts = run(tmp_path, "safetensors", range(part * 1250, (part + 1) * 1250))
    assert counts["error"] > 700 and counts["attached"] > 100 and counts["attached by order"] > 0


@pytest.mark.slow
def test_damaged_files_of_torch(tmp_path: Path) -> None:
    counts = run(tmp_path, "torch", range(112))
    assert counts["error"] > 50 and counts["attached"] > 20


@pytest.mark.slow
def test_damaged_folders_of_peft(tmp_path: Path) -> None:
    counts = run(tmp_path, "folder", range(68))
    assert counts["error"] > 30 and counts["attached"] > 10
