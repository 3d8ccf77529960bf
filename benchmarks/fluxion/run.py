"""Measure what the tree costs, against torch.nn.Sequential in the same process, and compare with the budgets."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from cases import CASES
from measure import Stopwatch
from report import Result, as_json, as_markdown, environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, write the files; return 1 if a budget is missed (never with --quick), else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the report as a Markdown table")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one or few rounds: shows that it runs, measures nothing")
    parser.add_argument("--processor-time", action="store_true", help="count processor time, for a busy machine")
    arguments = parser.parse_args(argv)

    watch = Stopwatch(arguments.quick, arguments.processor_time)
    torch.set_num_threads(1)
    clock = "processor time" if watch.processor_time else "wall time"
    before = environment(clock)
    results: list[Result] = []
    for name in arguments.only or CASES:
        results += CASES[name](watch)
    report = as_json(results, before, environment(clock))
    table = as_markdown(report)
    print(table, end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.table:
        arguments.table.write_text(table)
    return int(not arguments.quick and any(result.verdict == "missed" for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
