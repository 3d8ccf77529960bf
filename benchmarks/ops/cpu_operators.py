"""Measure the operators that replace functions of torch on the CPU, over shapes of the U-Nets of SD1.5 and SDXL."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import refiners
from refiners.bench.measure import Candidate, Plan, compare, make_flush, time_on_cpu
from refiners.ops import geglu, group_norm, linear
from refiners.ops.library import native

DTYPES = (torch.float32, torch.bfloat16)
LINEARS = ((256, 1280, 10240), (256, 5120, 1280), (256, 1280, 1280), (256, 640, 640), (154, 2048, 640), (2, 1280, 1280))
GEGLUS = ((2048, 10240), (8192, 5120))  # SDXL; the second is that of SD1.5 at 64² too
IMAGES = ((320, 64), (640, 32), (1280, 16), (1280, 8))  # channels and width in SD1.5


class Case(NamedTuple):
    """The same work by torch and by an operator."""

    operator: str
    shape: str
    dtype: torch.dtype
    by_torch: Callable[[], Tensor]
    ours: Callable[[], Tensor]


def linears() -> Iterator[Case]:
    for dtype in DTYPES:
        for rows, in_features, out_features in LINEARS:
            x, weight = torch.randn(rows, in_features).to(dtype), torch.randn(out_features, in_features).to(dtype)
            bias = torch.randn(out_features).to(dtype)
            yield Case(
                "linear",
                f"{rows}x{in_features}→{out_features}",
                dtype,
                lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias),
                lambda x=x, weight=weight, bias=bias: linear(x, weight, bias),
            )


def geglus() -> Iterator[Case]:
    def by_torch(x: Tensor) -> Tensor:
        values, gates = x.chunk(2, dim=-1)
        return values * F.gelu(gates)

    for dtype in DTYPES:
        for shape in GEGLUS:
            x = torch.randn(shape).to(dtype)
            yield Case("geglu", "x".join(map(str, shape)), dtype, lambda x=x: by_torch(x), lambda x=x: geglu(x))


def group_norms() -> Iterator[Case]:
    for dtype in DTYPES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for channels, width in IMAGES:
                x = torch.randn(2, channels, width, width).to(dtype).to(memory_format=memory_format)
                weight, bias = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
                layout = "channels last" if memory_format is torch.channels_last else "channels first"
                yield Case(
                    "group_norm + silu",
                    f"2x{channels}x{width}² {layout}",
                    dtype,
                    lambda x=x, weight=weight, bias=bias: F.silu(F.group_norm(x, 32, weight, bias)),
                    lambda x=x, weight=weight, bias=bias: group_norm(x, 32, weight, bias, silu=True),
                )


def measure(case: Case, plan: Plan, flush: Callable[[], None]) -> dict[str, Any]:
    """Time both, in turns and with cold caches, and compare their errors with the result in float64."""
    with torch.inference_mode():
        candidates = [Candidate("torch", case.by_torch), Candidate("refiners", case.ours)]
        theirs, ours = compare(candidates, time_on_cpu, plan, flush)
    return {
        "operator": case.operator,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "torch": theirs.wall._asdict(),
        "refiners": ours.wall._asdict(),
        "speedup": 1 / ours.ratio,
        "rounds": ours.rounds,
    }


def table(report: dict[str, Any]) -> str:
    """Lay the report out in Markdown."""
    lines = [
        f"`{report['command']}`, {report['date']}",
        "",
        f"{report['cpu']}, {report['threads']} threads, {report['isa']}, load {report['load'][0]} before; torch"
        f" {report['torch']}, refiners {report['refiners']}. Cold caches, both in turns; best and median of each, the"
        " median of the ratios.",
        "",
        "| operator | shape | dtype | torch, ms | refiners, ms | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["cases"]:
        figures = [f"{row[name]['best'] * 1e3:.3g} / {row[name]['median'] * 1e3:.3g}" for name in ("torch", "refiners")]
        lines.append(
            f"| {row['operator']} | {row['shape']} | {row['dtype']} | {' | '.join(figures)} | {row['speedup']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the report as a Markdown table")
    parser.add_argument("--min-time", type=float, default=0.3, metavar="SECONDS", help="how long each runs at least")
    arguments = parser.parse_args(argv)
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": native.isa,
        "load": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.__version__,
        "refiners": refiners.__version__,
        "python": platform.python_version(),
        "cases": [],
    }
    flush, plan = make_flush("cpu"), Plan(arguments.min_time, max_rounds=200)
    for cases in (linears, geglus, group_norms):
        report["cases"] += [measure(case, plan, flush) for case in cases()]
    print(table(report), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.table:
        arguments.table.write_text(table(report))


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
