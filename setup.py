"""Builds the native part: `refiners._C`, the operators on torch's stable ABI, and `refiners._host`, their host side.

What torch.utils.cpp_extension does not do is done here: flags for each CPU file by its suffix, nvcc with a CPU build of
torch, an incremental build without ninja. A file of csrc/common or csrc/ops/*/ is built because it is there.

Variables: CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, REFINERS_BUILD_CUDA=0 to build without nvcc, and
REFINERS_BUILD_NATIVE=0 to leave the native part as it is, built or not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
TORCH_MINIMUM = "2.11"
TORCH_TARGET_VERSION = "0x020b000000000000"  # the same, as the headers want it
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
GIB_PER_JOB = 4
NOTE = "_build_note.txt"  # beside the package: why there is no library; read by refiners.ops.library

COMMON_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG"]
CXX_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-MD"]
NVCC_FLAGS = ["-Xcompiler=-fPIC,-fvisibility=hidden", "-MD"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
ISA_FLAGS = {
    "avx2": AVX2_FLAGS,
    # GCC 12 warns of its own headers here: gcc.gnu.org/PR105593
    "avx512": [
        *AVX2_FLAGS,
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
}
ON_X86 = platform.machine() in ("x86_64", "AMD64")


class CannotBuildError(Exception):
    """The native part cannot be built here, for a reason that is no mistake: the package works without it."""


class Cuda(NamedTuple):
    """A CUDA toolkit."""

    nvcc: Path
    root: Path
    version: str
    architectures: list[str]


def run(command: list[str]) -> str:
    """Run a short command and give all that it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def find_compiler() -> list[str]:
    """Give the C++ compiler: CXX, else the first that is there."""
    if sys.platform != "linux":
        raise CannotBuildError(f"the native library is built on Linux only, and this is {sys.platform}")
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise CannotBuildError(f"there is no C++ compiler ({wanted[0] if wanted else 'c++, g++ or clang++'}) on PATH")


def find_cuda() -> Cuda | None:
    """Find the toolkit: CUDA_HOME, then nvcc on PATH (maybe a wrapper script, so it is asked), then the usual place."""
    if os.environ.get("REFINERS_BUILD_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    for nvcc in (home and Path(home, "bin", "nvcc"), on_path and Path(on_path), Path("/usr/local/cuda/bin/nvcc")):
        if not nvcc or not nvcc.exists():
            continue
        top = re.search(r"^#\$ TOP=(.*)$", run([str(nvcc), "--dryrun", "none.cu"]), re.MULTILINE)
        root = (nvcc.parent / top[1]).resolve() if top else nvcc.resolve().parent.parent
        release = re.search(r"release (\d+\.\d+)", run([str(nvcc), "--version"]))
        if release and (root / "include/cuda_runtime_api.h").exists():
            return Cuda(nvcc, root, release[1], choose_architectures(nvcc))
        print(f"refiners: {nvcc} is not used, there is no complete toolkit around it", file=sys.stderr)
    return None


def choose_architectures(nvcc: Path) -> list[str]:
    """Give TORCH_CUDA_ARCH_LIST as a list; by default the GPUs that are here, or else what a release supports."""
    import torch

    names = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if names != [""]:
        return names
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return [f"{major}.{minor}{'a' * (major >= 9)}" for major, minor in sorted(found)]
    known = run([str(nvcc), "--list-gpu-code"])
    return [name for name in DEFAULT_ARCHITECTURES.split(";") if f"sm_{code_of(name).rstrip('af')}" in known]


def code_of(architecture: str) -> str:
    """Give what nvcc calls `9.0a`: `90a`."""
    match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture)
    if match is None:
        raise SystemExit(
            f"refiners: TORCH_CUDA_ARCH_LIST holds {architecture!r}, expected names such as 8.0 or 9.0a+PTX"
        )
    return "".join(group or "" for group in match.groups()[:3])


def gencode(architecture: str) -> list[str]:
    """Give the flags of nvcc for an architecture."""
    code = code_of(architecture)
    flags = [f"-gencode=arch=compute_{code},code=sm_{code}"]
    return flags + [f"-gencode=arch=compute_{code},code=compute_{code}"] * architecture.endswith("+PTX")


def count_jobs() -> int:
    """Give the compilers that may run at once: as many as there are cores and memory for."""
    if wanted := os.environ.get("MAX_JOBS"):
        return max(1, int(wanted))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(free / GIB_PER_JOB)))


def is_current(target: Path, command: str) -> bool:
    """Whether an object was made by this command, after the last change of each file that it depends on."""
    record, dependencies = target.with_suffix(".cmd"), target.with_suffix(".d")
    if not (target.exists() and dependencies.exists() and record.exists() and record.read_text() == command):
        return False
    names = shlex.split(dependencies.read_text().replace("\\\n", " ").split(":", 1)[1])
    made = target.stat().st_mtime_ns
    return all(os.path.exists(name) and os.stat(name).st_mtime_ns <= made for name in names)


def compile_one(command: list[str], target: Path) -> None:
    """Compile an object where it is not current."""
    text = shlex.join(command)
    if is_current(target, text):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".cmd").unlink(missing_ok=True)
    print(text, flush=True)
    subprocess.run(command, check=True)
    target.with_suffix(".cmd").write_text(text)


def load_library_file() -> ModuleType:
    """Import the module that knows how a library carries its record, without the package around it."""
    spec = importlib.util.spec_from_file_location("library_file", ROOT / "python/refiners/ops/library_file.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NativeBuild(build_ext):
    """Compiles all sources to objects, those that changed only, then links the two extensions."""

    def run(self) -> None:
        """Build, or say why the package is installed without its native part."""
        if os.environ.get("REFINERS_BUILD_NATIVE") == "0":
            self.extensions = []
            return
        try:
            self.compiler_command = find_compiler()
        except CannotBuildError as error:
            message = f"It was not built when refiners was installed: {error}"
            print(f"refiners: pure Python only. {message}", file=sys.stderr)
            self.extensions = []
            self.package_folder().mkdir(parents=True, exist_ok=True)
            (self.package_folder() / NOTE).write_text(message)
            return
        try:
            import torch  # noqa: F401 # pyright: ignore[reportUnusedImport]
        except ImportError:
            raise SystemExit(
                f"refiners: torch >= {TORCH_MINIMUM} must be installed to build without isolation (its headers are "
                "needed): pip install torch, or leave --no-build-isolation out"
            ) from None
        self.cuda = find_cuda()
        self.objects = Path(self.build_temp).resolve()
        (self.package_folder() / NOTE).unlink(missing_ok=True)
        super().run()

    def package_folder(self) -> Path:
        """Give the folder that the libraries go to."""
        return Path(self.get_ext_fullpath("refiners._C")).parent

    def build_extension(self, ext: Extension) -> None:
        """Build one of the two."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        record = self.record()
        if ext.name == "refiners._host":
            self.link(self.compile_host(record), [], target)
        else:
            self.link(self.compile_operators(), self.library_flags(), target)
            load_library_file().seal(target, record)

    def record(self) -> dict[str, object]:
        """Give what the library says of its build."""
        import torch

        return {
            "version": self.distribution.get_version(),
            "interface": load_library_file().INTERFACE,
            "machine": platform.machine(),
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "torch": str(torch.__version__),
            "torch_minimum": TORCH_MINIMUM,
            "compiler": run([*self.compiler_command, "--version"]).splitlines()[0],
            "isas": list(ISA_FLAGS) if ON_X86 else [],
            "cuda": self.cuda.version if self.cuda else None,
            "cuda_architectures": self.cuda.architectures if self.cuda else [],
        }

    def defines(self) -> list[str]:
        """Give the macros that say what is built."""
        isas = [f"-DREFINERS_{isa.upper()}" for isa in ISA_FLAGS if ON_X86]
        return [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *isas, *["-DUSE_CUDA"] * bool(self.cuda)]

    def includes(self) -> list[str]:
        """Give the folders of headers: torch's, and those of the toolkit."""
        from torch.utils.cpp_extension import include_paths

        paths = include_paths() + ([str(self.cuda.root / "include")] if self.cuda else [])
        return [f"-isystem{path}" for path in paths]

    def compile_operators(self) -> list[Path]:
        """Compile csrc/common and csrc/ops."""
        sources = [*sorted(CSRC.glob("common/*.cpp")), *sorted(CSRC.glob("ops/*/*.cpp"))]
        if self.cuda:
            sources += sorted(CSRC.glob("ops/*/*.cu"))
        steps: list[tuple[list[str], Path]] = []
        for source in sources:
            suffix = source.stem.rsplit("_", 1)[-1]
            if (suffix in ISA_FLAGS and not ON_X86) or (suffix == "cuda" and not self.cuda):
                continue
            steps.append(self.step(source, ISA_FLAGS.get(suffix, [])))
        with ThreadPoolExecutor(count_jobs()) as pool:
            list(pool.map(compile_one, *zip(*steps, strict=True)))
        return [target for _, target in steps]

    def step(self, source: Path, flags: list[str]) -> tuple[list[str], Path]:
        """Give the command for a source, and its object."""
        target = self.objects / source.relative_to(CSRC).with_suffix(f"{source.suffix}.o")
        if source.suffix == ".cu":
            assert self.cuda
            codes = [flag for architecture in self.cuda.architectures for flag in gencode(architecture)]
            command = [str(self.cuda.nvcc), *COMMON_FLAGS, *NVCC_FLAGS, *codes, "-ccbin", self.compiler_command[-1]]
        else:
            command = [*self.compiler_command, *COMMON_FLAGS, *CXX_FLAGS, *self.defines(), *self.includes(), *flags]
        return [*command, "-MF", str(target.with_suffix(".d")), "-c", str(source), "-o", str(target)], target

    def compile_host(self, record: dict[str, object]) -> list[Path]:
        """Compile csrc/host.cpp and what it needs."""
        header = self.objects / "build_record.h"
        text = f'#define REFINERS_BUILD_RECORD R"json({json.dumps(record)})json"\n'
        header.parent.mkdir(parents=True, exist_ok=True)
        if not header.exists() or header.read_text() != text:
            header.write_text(text)
        python = [f"-isystem{sysconfig.get_path('include')}", "-include", str(header)]
        steps = [self.step(CSRC / "host.cpp", python), self.step(CSRC / "common/cpu_features.cpp", [])]
        for command, target in steps:
            compile_one(command, target)
        return [target for _, target in steps]

    def library_flags(self) -> list[str]:
        """Give the libraries that the operators link: torch for the CPU in any case, and the CUDA runtime, static."""
        from torch.utils.cpp_extension import library_paths

        flags = [*(f"-L{path}" for path in library_paths()), "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]
        if self.cuda:
            folders = [self.cuda.root / "lib64", self.cuda.root / "lib"]
            flags += [*(f"-L{folder}" for folder in folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return flags

    def link(self, objects: list[Path], flags: list[str], target: Path) -> None:
        """Link a shared library."""
        command = [*self.compiler_command, "-shared", "-Wl,-s", *map(str, objects), *flags, "-o", str(target)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("refiners._C", [], py_limited_api=True), Extension("refiners._host", [])],
        cmdclass={"build_ext": NativeBuild},
    )
