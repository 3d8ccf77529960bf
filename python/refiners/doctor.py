"""`python -m refiners doctor`: versions, devices, the native library, and the path that each operator takes and why."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch

from refiners import __version__
from refiners.ops.attention_choice import choose_attention
from refiners.ops.library import DTYPES, PACKAGE, WITH_CUDA_KERNELS, WITH_ONE_KERNEL, NativeLibrary, native
from refiners.ops.lora_block import limit_of, lora_block_cache
from refiners.ops.settings import unknown_variables
from refiners.options import OneLineParser

_PACKAGES = ("safetensors", "numpy", "pillow", "jaxtyping")


def main(argv: Sequence[str]) -> int:
    """Print the report; the exit status is 0 whatever it says."""
    parser = OneLineParser(prog="python -m refiners doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    found = report()
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(_lines(found)))
    return 0


def report() -> dict[str, Any]:
    """Collect everything that is printed, as values that JSON can hold."""
    host, host_problem = _load_host()
    return {
        "versions": _versions(),
        "cpu": _cpu(host),
        "devices": _devices(),
        "native library": _library(native),
        "host module": {"loaded": host is not None, "problem": host_problem},
        "operators": {
            **{name: _with_one_kernel(native, name) for name in WITH_ONE_KERNEL},
            "fl.ScaledDotProductAttention": _attention_layer(native),
            "lora_linear": _lora_linear(native),
        },
        "block cache": {
            "blocks": len(lora_block_cache),
            "MiB": lora_block_cache.bytes / 2**20,
            "limit MiB": limit_of(torch.device("cpu")) / 2**20,
        },
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("REFINERS_")},
        "unknown variables": unknown_variables(),
    }


def _versions() -> dict[str, str]:
    found = {"refiners": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


_TRY_HOST = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
module_from_spec(spec_from_file_location("refiners._host", sys.argv[1]))
"""


def _load_host() -> tuple[Any, str | None]:
    files = [PACKAGE / f"_host{suffix}" for suffix in EXTENSION_SUFFIXES]
    file = next((file for file in files if file.exists()), None)
    if file is not None and (problem := _try_host(file)):
        return None, problem
    try:
        return import_module("refiners._host"), None
    except ImportError as error:
        others = sorted(path.name for path in PACKAGE.glob("_host.*"))
        built = f"built for another Python: {', '.join(others)}" if others else "not built"
        return None, f"{built} ({error})"


def _try_host(file: Path) -> str | None:
    """Load the module in a process of its own, which a damaged file may take down; give what went wrong."""
    tried = subprocess.run([sys.executable, "-c", _TRY_HOST, str(file)], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return None
    if tried.returncode < 0:
        return f"damaged: {file.name} ends the process that loads it with signal {-tried.returncode}"
    lines = tried.stderr.strip().splitlines()
    return f"does not load: {lines[-1] if lines else file.name}"


def _cpu(host: Any) -> dict[str, Any]:
    features: dict[str, bool] | None = None if host is None else host.cpu_features()
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": None if features is None else sorted(name for name, there in features.items() if there),
        "torch": torch.backends.cpu.get_cpu_capability(),
    }


def _devices() -> list[str]:
    found = ["cpu"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(index)
        found.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, sm_{major}{minor}")
    return found + ["mps"] * torch.backends.mps.is_available()


def _library(library: NativeLibrary) -> dict[str, Any]:
    return {
        "file": None if library.path is None else str(library.path),
        "built": None if library.record is None else library.record._asdict(),
        "loaded": library.loaded,
        "problem": library.problem,
        "instruction set": library.isa,
        "because": library.isa_reason,
    }


def _lora_linear(library: NativeLibrary) -> dict[str, str]:
    paths: dict[str, str] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        plan, reason = library.explain_lora_linear(name, has_block=False)
        paths[f"cpu {name}"] = _path(plan, library.isa, reason)
        plan_with_block, reason = library.explain_lora_linear(name, has_block=True)
        if plan_with_block != plan:
            paths[f"cpu {name}, with a block"] = _path(plan_with_block, library.isa, reason)
        gain = "one library multiplication with a block, else the library's for each update"
        paths[f"cuda {name}"] = _cuda_path(library, "lora_linear", dtype, gain)
    paths["other devices"] = "portable: there are kernels for the CPU and CUDA only"
    return paths


def _with_one_kernel(library: NativeLibrary, operator: str) -> dict[str, str]:
    paths: dict[str, str] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        plan, reason = library.explain(operator, name)
        paths[f"cpu {name}"] = _path(plan, library.isa, reason)
        if operator in WITH_CUDA_KERNELS:
            paths[f"cuda {name}"] = _cuda_path(library, operator, dtype, "one launch")
    devices = "the CPU and CUDA" if operator in WITH_CUDA_KERNELS else "the CPU"
    paths["other devices"] = f"portable: there are kernels for {devices} only"
    return paths


def _attention_layer(library: NativeLibrary) -> dict[str, str]:
    """Tell what the layer does, which asks whether it gains by the operator."""
    paths: dict[str, str] = {}
    for dtype in DTYPES:
        for is_recorded in (False, True):
            has_kernel = library.has_kernel("attention", dtype)
            reason = choose_attention(library.isa, dtype, is_recorded)[1] if has_kernel else "torch's function"
            paths[f"cpu {str(dtype).removeprefix('torch.')}{', training' * is_recorded}"] = reason
    return paths


def _path(plan: str, isa: str, reason: str) -> str:
    return f"portable: {reason}" if plan == "portable" else f"native ({plan}, {isa}): {reason}"


def _cuda_path(library: NativeLibrary, operator: str, dtype: torch.dtype, gain: str) -> str:
    if not torch.cuda.is_available():
        return "none: torch sees no CUDA device"
    if problem := library.why_no_cuda_kernels(operator, dtype):
        return f"portable: {problem}"
    return f"native: {gain}"


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for name, value in found.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_lines(cast("dict[str, Any]", value), indent + "  ")]
        else:
            shown = _shown(cast("object", value))
            lines.append(f"{indent}{name}: {shown}")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value))) or "-"
    return "-" if value is None or value == {} else str(value)
