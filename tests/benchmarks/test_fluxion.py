"""The benchmark of the tree runs, builds the tree that it says, and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "fluxion"


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_quick_mode_writes_json_and_a_table(tmp_path: Path) -> None:
    results, table = tmp_path / "results.json", tmp_path / "table.md"
    printed = run(str(FOLDER / "run.py"), "--quick", "--json", str(results), "--table", str(table))
    report = json.loads(results.read_text())
    assert {"command", "clock", "cpu", "cores", "date", "load", "load_after", "python", "torch", "refiners"} <= set(
        report["environment"]
    )
    assert len(report["results"]) >= 12
    for row in report["results"]:
        assert row.keys() == {"name", "unit", "best", "median", "budget", "verdict"}
        assert row["best"] <= row["median"] or row["unit"] not in ("ms", "s")  # the others are differences and ratios
        assert (row["verdict"] == "-") == (row["budget"] is None)
        assert f"| {row['name']} |" in table.read_text()
    assert table.read_text() == printed


def test_some_cases_can_be_chosen(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run(str(FOLDER / "run.py"), "--quick", "--only", "context_write", "--json", str(results))
    names = [row["name"] for row in json.loads(results.read_text())["results"]]
    assert names and all(name.startswith("set_context") for name in names)


def test_the_synthetic_tree_has_the_size_of_the_unet() -> None:
    program = (
        "from synthetic import *; assert count(SyntheticUNet(device='meta')) == SDXL_COUNTS, count(SyntheticUNet())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FOLDER)


def test_the_verdict_compares_the_median_with_the_budget() -> None:
    program = (
        "from report import Result\n"
        "verdicts = [Result('', 'ms', *figures).verdict for figures in ((1, 2, 3), (1, 4, 3), (4, 5, 3), (1, 2))]\n"
        "assert verdicts == ['holds', 'best only', 'missed', '-'], verdicts"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FOLDER)
