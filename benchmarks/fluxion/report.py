"""Results, where they were measured, and their two forms: a Markdown table and JSON."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Attributes:
        name: What was measured.
        unit: The unit of the figures: `ms`, `us`, `s`, or `x` for a ratio to the baseline.
        best: The best round.
        median: The median round.
        budget: What it may cost, None where nothing is promised.
    """

    name: str
    unit: str
    best: float
    median: float
    budget: float | None = None

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return "-"
        if self.median <= self.budget:
            return "holds"
        return "best only" if self.best <= self.budget else "missed"


def as_json(results: list[Result], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Lay the results out for JSON, with the environment and the load at the end."""
    rows = [{**asdict(result), "verdict": result.verdict} for result in results]
    return {"environment": {**before, "load_after": after["load"]}, "results": rows}


def as_markdown(report: dict[str, Any]) -> str:
    """Lay a report out as a Markdown table under its environment."""
    where = report["environment"]
    lines = [
        f"`{where['command']}`, {where['date']}",
        "",
        f"{where['cpu']}, {where['cores']} cores, load {where['load'][0]} before and {where['load_after'][0]} after;"
        f" Python {where['python']}, torch {where['torch']} ({where['threads']} thread),"
        f" refiners {where['refiners']}. Figures in {where['clock']}.",
        "",
        "| measured | budget | best | median | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in report["results"]:
        budget = "-" if row["budget"] is None else f"{row['budget']:g} {row['unit']}"
        figures = f"{row['best']:.3g} {row['unit']} | {row['median']:.3g} {row['unit']}"
        lines.append(f"| {row['name']} | {budget} | {figures} | {row['verdict']} |")
    return "\n".join(lines) + "\n"
