"""The figures as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from refiners.bench.lora_linear import Result, bytes_moved, flops

_CASE = ("layer", "layers", "rank", "dtype", "device", "candidate")
_FIGURES = ("GFLOP", "MB", "best ms", "median ms", "spread %", "CPU ms", "GFLOP/s", "% over bare", "% of separate")
_TOTAL = (
    "all layers of",
    "device",
    "dtype",
    "rank",
    "layers",
    "bare ms",
    "lora_linear %",
    "separate %",
    "% of separate",
)


def totals(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Add the layers of a model up: the median time of the bare layers, and what the others cost beyond it."""
    sums: dict[tuple[str, str, str, int], list[float]] = {}
    for result in results:
        problem, (bare, ours, separate) = result.problem, result.measurements
        key = (problem.shape.model, problem.device, problem.dtype, problem.rank)
        time = problem.shape.count * bare.wall.median
        row = sums.setdefault(key, [0, 0, 0, 0])
        sums[key] = [
            row[0] + problem.shape.count,
            row[1] + time,
            row[2] + time * ours.ratio,
            row[3] + time * separate.ratio,
        ]
    return [
        {
            **dict(zip(("model", "device", "dtype", "rank"), key, strict=True)),
            "layers": int(layers),
            "bare_seconds": bare,
            "lora_linear_overhead": ours / bare - 1,
            "separate_overhead": separate / bare - 1,
        }
        for key, (layers, bare, ours, separate) in sums.items()
    ]


def as_json(results: Sequence[Result], facts: dict[str, Any]) -> dict[str, Any]:
    """Give everything that was measured."""
    cases = [
        {
            **asdict(result.problem.shape),
            "rank": result.problem.rank,
            "dtype": result.problem.dtype,
            "device": result.problem.device,
            "relative_difference": result.difference,
            "candidates": [
                {
                    "name": m.name,
                    "flops": flops(result.problem, bare=i == 0),
                    "bytes": bytes_moved(result.problem, bare=i == 0),
                    "seconds": m.wall._asdict(),
                    "cpu_seconds": m.cpu._asdict(),
                    "ratio_to_bare": m.ratio,
                    "rounds": m.rounds,
                }
                for i, m in enumerate(result.measurements)
            ],
        }
        for result in results
    ]
    return {**facts, "totals": totals(results), "cases": cases}


def as_table(results: Sequence[Result], facts: dict[str, Any]) -> str:
    """Give the facts, a line for each candidate of each case, and the sums over the models."""
    head = "".join(f"{name:<12} {_text(value)}\n" for name, value in facts.items())
    rows = [row for result in results for row in _case_rows(result)]
    sums = [
        (
            *(str(total[key]) for key in ("model", "device", "dtype", "rank", "layers")),
            f"{1e3 * total['bare_seconds']:.1f}",
            f"{100 * total['lora_linear_overhead']:.1f}",
            f"{100 * total['separate_overhead']:.1f}",
            _share(total["lora_linear_overhead"], total["separate_overhead"]),
        )
        for total in totals(results)
    ]
    return "\n".join([head, _align(_CASE + _FIGURES, rows), _align(_TOTAL, sums)])


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "; ".join(f"{name} {fact}" for name, fact in cast(dict[str, Any], value).items())


def _case_rows(result: Result) -> list[tuple[str, ...]]:
    problem, separate = result.problem, result.measurements[2].ratio - 1
    rows: list[tuple[str, ...]] = []
    for i, m in enumerate(result.measurements):
        bare = i == 0
        name = (str(problem.shape), str(problem.shape.count), str(problem.rank), problem.dtype, problem.device)
        work = flops(problem, bare)
        rows.append(
            (
                *(name if bare else ("",) * 5),
                m.name,
                f"{work / 1e9:.2f}",
                f"{bytes_moved(problem, bare) / 1e6:.1f}",
                f"{1e3 * m.wall.best:.3f}",
                f"{1e3 * m.wall.median:.3f}",
                f"{100 * m.wall.spread:.0f}",
                f"{1e3 * m.cpu.median:.2f}",
                f"{work / m.wall.best / 1e9:.1f}",
                "" if bare else f"{100 * (m.ratio - 1):.1f}",
                "" if bare else _share(m.ratio - 1, separate),
            )
        )
    return rows


def _share(overhead: float, separate: float) -> str:
    return f"{100 * overhead / separate:.0f}" if separate > 0 else "-"


def _align(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Put words to the left of their columns and numbers to the right."""
    lines = [titles, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    is_word = [any(row[i][:1].isalpha() for row in rows) for i in range(len(titles))]

    def render(line: Sequence[str]) -> str:
        cells = zip(line, widths, is_word, strict=True)
        return "  ".join(f"{cell:<{width}}" if word else f"{cell:>{width}}" for cell, width, word in cells).rstrip()

    return "\n".join([render(titles), "  ".join("-" * width for width in widths), *map(render, rows)]) + "\n"
