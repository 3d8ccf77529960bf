"""Write the table of what `make parity` compared: scripts/parity_table.py FILE.jsonl TABLE.md."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import refiners

INTRODUCTION = """\
Models of the published sizes with random weights in float32, next to diffusers and transformers with the same weights,
on the CPU. The first error is the norm of the difference over that of what is expected; the second the largest element
of the difference, in standard deviations of what is expected.
"""


def main(rows_file: Path, table_file: Path) -> None:
    """Read the rows, write the table."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in rows_file.read_text().splitlines()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "transformers"))
    lines = [
        f"`make parity`, {datetime.now(timezone.utc).isoformat(timespec='seconds')}, refiners {refiners.__version__},"
        f" torch {torch.__version__}, {versions}",
        "",
        INTRODUCTION,
        "| compared | shape | error | bound | largest | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        largest_bound = "" if row["largest_bound"] is None else f"{row['largest_bound']:.0e}"
        shape = "x".join(map(str, row["shape"]))
        lines.append(
            f"| {row['what']} | {shape} | {row['norm']:.1e} | {row['bound']:.0e} | {row['largest']:.1e} |"
            f" {largest_bound} |"
        )
    table_file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
