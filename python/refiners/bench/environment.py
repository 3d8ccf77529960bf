"""What figures are measured on, and how they are written down."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from refiners import __version__
from refiners.ops.library import native

Report = dict[str, Any]


def environment(*packages: str, command: str | None = None) -> Report:
    """Say what is measured where; call it before the run, so that the load is that of the neighbours.

    Args:
        packages: What else is measured, and must be installed.
        command: How to run it again (default: the command of this process).
    """
    return {
        "command": command or shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": native.isa,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in packages},
        "refiners": __version__,
    }


def heading(report: Report, *packages: str) -> list[str]:
    """Write an environment down, as the first lines of a report in Markdown."""
    versions = ", ".join(f"{package} {report[package]}" for package in ("torch", *packages, "refiners"))
    return [
        f"`{report['command']}`, {report['date']}",
        "",
        f"{report['cpu']}, {report['threads']} threads, {report['isa']}, load {report['load'][0]} before; {versions}.",
        "",
    ]


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Let the command line say where a report goes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the report as a Markdown table")


def write(report: Report, table: Callable[[Report], str], arguments: argparse.Namespace) -> None:
    """Print a report, and write it where the command line says."""
    print(table(report), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.table:
        arguments.table.write_text(table(report))


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
