"""Draw what low-rank updates cost, layer by layer, from the JSON of either benchmark of lora_linear."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

COLOURS = {"lora_linear": "#1f6feb", "separate": "#c9d1d9"}
LABELS = {"lora_linear": "refiners: one operator", "separate": "torch: separate products, scale and sum"}


def share(case: dict[str, Any], candidate: str) -> float:
    """Give the median time in percent of that of torch's layer without updates."""
    ratios = {entry["name"]: entry["ratio_to_bare"] for entry in case["candidates"]}
    return 100 * ratios[candidate]


def choose_cases(report: dict[str, Any], model: str, dtype: str, rank: int) -> list[dict[str, Any]]:
    """Give the layers, the most frequent shapes first."""
    wanted = {"model": model, "dtype": dtype, "rank": rank, "device": "cpu"}
    cases = [case for case in report["cases"] if wanted.items() <= case.items()]
    if not cases:
        raise SystemExit(f"plot.py: there is no case of {wanted} in the report")
    return sorted(cases, key=lambda case: -case["count"])


def draw(cases: list[dict[str, Any]], title: str, target: Path) -> None:
    """Draw one pair of bars for each shape."""
    mpl.rcParams.update({"svg.hashsalt": "refiners", "font.size": 9})
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(cases) + 1.2), layout="constrained")
    for offset, (name, colour) in zip((-0.2, 0.2), COLOURS.items()):
        values = [share(case, name) for case in cases]
        bars = axes.barh([i + offset for i in range(len(cases))], values, 0.4, color=colour, label=LABELS[name])
        axes.bar_label(bars, [f"{value:.0f} %" for value in values], padding=3, fontsize=8)
    names = [
        f"{c['rows']}x{c['in_features']} → {c['out_features']}  ({c['count']} layer{'s' * (c['count'] > 1)})"
        for c in cases
    ]
    axes.set_yticks(range(len(cases)), names)
    axes.invert_yaxis()
    axes.axvline(100, color="black", linewidth=0.8, label="torch: the layer without updates")
    axes.set_xlabel("time in percent of the layer without updates in torch, median; less is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    axes.set_title(title, loc="left")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Read a report, write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "report", type=Path, help="the JSON of `refiners_bench lora_linear` or `python -m refiners bench`"
    )
    parser.add_argument("picture", type=Path, help="the file to write: .svg or .png")
    parser.add_argument("--model", default="sdxl")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args(argv)
    report = json.loads(arguments.report.read_text())
    cases = choose_cases(report, arguments.model, arguments.dtype, arguments.rank)
    title = f"Linear layers of {arguments.model.upper()} with a LoRA of rank {arguments.rank}, {arguments.dtype}"
    draw(cases, title, arguments.picture)


if __name__ == "__main__":
    main()
