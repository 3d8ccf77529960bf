"""Compile every CUDA source for sm_80 and sm_90a and fail where a kernel spills registers or keeps a stack frame.

Usage: python scripts/check_ptxas.py [--require]. Without nvcc it says so and succeeds, with --require it fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("80", "90a")
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "-Xptxas=-v")

_KERNEL = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


class Kernel(NamedTuple):
    """What ptxas reports of one kernel."""

    name: str
    architecture: str
    stack_frame: int
    spill_stores: int
    spill_loads: int
    registers: int

    @property
    def is_clean(self) -> bool:
        """Whether everything stays in registers."""
        return self.stack_frame == self.spill_stores == self.spill_loads == 0


def parse(report: str) -> list[Kernel]:
    """Read what `ptxas -v` prints: for each kernel a line that names it, one on memory, one on registers."""
    kernels: list[Kernel] = []
    for part in re.split(r"(?=Compiling entry function)", report)[1:]:
        name, memory, registers = _KERNEL.search(part), _MEMORY.search(part), _REGISTERS.search(part)
        if name is None or memory is None or registers is None:
            raise ValueError(f"this is no report of ptxas: {part.strip()!r}")
        kernels.append(Kernel(name[1], name[2], int(memory[1]), int(memory[2]), int(memory[3]), int(registers[1])))
    return kernels


def find_nvcc() -> str | None:
    """Find nvcc: CUDA_HOME, then PATH, then the usual place."""
    home = os.environ.get("CUDA_HOME")
    names = [f"{home}/bin/nvcc"] * bool(home) + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for name in names if (found := shutil.which(name))), None)


def compile_source(nvcc: str, source: Path, folder: Path) -> list[Kernel]:
    """Compile one source for all architectures and give its kernels."""
    codes = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in ARCHITECTURES]
    command = [nvcc, *FLAGS, *codes, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout}")
    return parse(result.stdout)


def demangle(name: str) -> str:
    """Give a name as it stands in the source, where c++filt is there."""
    tool = shutil.which("c++filt")
    return subprocess.run([tool, name], capture_output=True, text=True).stdout.strip() if tool else name


def main() -> int:
    """Compile, print one line for each kernel, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--require", action="store_true", help="fail where there is no nvcc")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("check_ptxas: there is no nvcc, nothing was compiled", file=sys.stderr)
        return int(arguments.require)
    sources = sorted((ROOT / "csrc").glob("**/*.cu"))
    with tempfile.TemporaryDirectory() as folder:
        kernels = [kernel for source in sources for kernel in compile_source(nvcc, source, Path(folder))]
    for kernel in kernels:
        memory = f"stack {kernel.stack_frame}, spills {kernel.spill_stores} + {kernel.spill_loads} bytes"
        verdict = "ok  " if kernel.is_clean else "FAIL"
        print(f"{verdict} {kernel.architecture}: {kernel.registers} registers, {memory}: {demangle(kernel.name)}")
    dirty = sum(not kernel.is_clean for kernel in kernels)
    print(f"{len(kernels)} kernels of {len(sources)} files, {dirty} with spills or stack frames")
    return int(dirty > 0 or not kernels)


if __name__ == "__main__":
    sys.exit(main())
