"""Measure what the tree costs, against torch.nn.Sequential in the same process, and compare with the budgets."""

import argparse
from collections.abc import Sequence

import torch
from cases import CASES
from measure import Stopwatch
from report import Result, as_json, as_markdown

from refiners.bench.environment import add_outputs, environment, write


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, write the files; return 1 if a budget is missed (never with --quick), else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_outputs(parser)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one or few rounds: shows that it runs, measures nothing")
    parser.add_argument("--processor-time", action="store_true", help="count processor time, for a busy machine")
    arguments = parser.parse_args(argv)

    watch = Stopwatch(arguments.quick, arguments.processor_time)
    torch.set_num_threads(1)
    clock = "processor time" if watch.processor_time else "wall time"
    before = environment() | {"clock": clock}
    results: list[Result] = []
    for name in arguments.only or CASES:
        results += CASES[name](watch)
    report = as_json(results, before, environment())
    write(report, as_markdown, arguments)
    return int(not arguments.quick and any(result.verdict == "missed" for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
