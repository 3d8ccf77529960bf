"""The command line of `python -m refiners bench`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

import torch

from refiners.bench.environment import environment
from refiners.bench.lora_linear import DTYPES, Problem, Result, measure
from refiners.bench.measure import Plan
from refiners.bench.options import positive_integers, positive_number, some_devices, some_of
from refiners.bench.report import as_json, as_table
from refiners.bench.shapes import MODELS, limit_rows, load_shapes
from refiners.ops.library import native
from refiners.options import OneLineParser, natural, new_file

_DESCRIPTION = """\
Measure lora_linear over the linear layers of the U-Nets of SD1.5 and SDXL: the layer alone (bare), the operator, and
the operations one by one (separate)."""
_EPILOG = """\
Without --full: SDXL, rank 16, at most 256 rows, few rounds; under a minute on two cores. With it: both models, ranks
16, 64 and 128, at most 1024 rows on a CPU and all of them on a GPU. Candidates alternate, caches are cold. The C++ side
has the same benchmark, with the ceilings of the machine: make bench."""


def main(argv: Sequence[str]) -> int:
    """Measure `lora_linear` over the linear layers of the U-Nets.

    Args:
        argv: The options.

    Returns:
        The exit status: 0, or 2 for a bad option.
    """
    try:
        arguments = _make_parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    choices = {name: ", ".join(native.explain_lora_linear(name, True)) for name in ("float32", "bfloat16")}
    command = shlex.join(["python", "-m", "refiners", "bench", *argv])
    facts = environment(command=command) | {"lora_linear": choices}
    plan = Plan(arguments.min_time or (0.2 if arguments.full else 0.02), max_rounds=100 if arguments.full else 20)
    problems = choose_problems(arguments)
    results: list[Result] = []
    for i, problem in enumerate(problems):
        _show_progress(f"[{i + 1}/{len(problems)}] {problem.shape} {problem.dtype} rank {problem.rank}")
        results.append(measure(problem, plan))
    _show_progress("")
    table = as_table(results, facts)
    print(table, end="")
    if arguments.table:
        arguments.table.write_text(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(results, facts), indent=2) + "\n")
    return 0


def choose_problems(arguments: argparse.Namespace) -> list[Problem]:
    """Give the problems that the options ask for."""
    ranks = arguments.rank or ([16, 64, 128] if arguments.full else [16])
    models = arguments.model or (MODELS if arguments.full else MODELS[-1:])
    problems: list[Problem] = []
    for device in arguments.device or _devices():
        default = sys.maxsize if device == "cuda" else 1024
        rows = arguments.rows or (default if arguments.full else 256)
        shapes = [shape for model in models for shape in limit_rows(load_shapes(model), rows)]
        problems += [
            Problem(shape, rank, dtype, device) for dtype in arguments.dtype for rank in ranks for shape in shapes
        ]
    return problems


def _make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m refiners bench", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=some_of(MODELS), metavar="A,B", help=f"any of {', '.join(MODELS)}")
    add("--rank", type=positive_integers, metavar="N,N", help="ranks of the update")
    add("--dtype", type=some_of(DTYPES), default=list(DTYPES), metavar="A,B", help=f"any of {', '.join(DTYPES)}")
    add("--rows", type=natural(1), metavar="N", help="at most so many rows")
    add("--device", type=some_devices, metavar="A,B", help="any of cpu, cuda; without it wherever it can run")
    add("--min-time", type=positive_number, metavar="SECONDS", help="how long each candidate runs at least")
    add("--full", action="store_true", help="more ranks, more rows, more rounds")
    add("--table", type=new_file, metavar="FILE", help="write the table there too")
    add("--json", type=new_file, metavar="FILE", help="write all figures there")
    return parser


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
