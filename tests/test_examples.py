"""Every script of examples/ runs to its end, alone, and prints something; one that counts its graphs has one."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_the_example_runs(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    one_graph = "graphs when compiled: 1 - breaks: 0"
    assert (one_graph in done.stdout.splitlines()) == ("graphs when compiled" in script.read_text()), done.stdout
