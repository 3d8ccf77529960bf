"""Builds the native part: `refiners._C`, the operators on torch's stable ABI, and `refiners._host`, their host side.

torch.utils.cpp_extension compiles, with ninja where there is one: then only what changed. What it does not do is done
here: flags for each CPU file by its suffix, nvcc with any build of torch. A file of csrc/common or csrc/ops/*/ is built
because it is there.

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
import zlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

if TYPE_CHECKING or importlib.util.find_spec("torch") is None:  # without it, run() below builds nothing
    from setuptools.command.build_ext import build_ext as BuildExtension
else:
    from torch.utils.cpp_extension import BuildExtension

ROOT = Path(__file__).parent.resolve()
CSRC = Path("csrc")  # relative: an object is named after its source
HOST_SOURCES = [str(CSRC / "host.cpp"), str(CSRC / "common/cpu_features.cpp")]
TORCH_MINIMUM = "2.11"
TORCH_TARGET_VERSION = "0x020b000000000000"  # the same, as the headers want it
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
GIB_PER_JOB = 4
NOTE = "_build_note.txt"  # beside the package: why there is no library; read by refiners.ops.library

COMMON_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG"]
CXX_FLAGS = [*COMMON_FLAGS, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = [*COMMON_FLAGS, "-Xcompiler=-fPIC,-fvisibility=hidden"]
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
    import torch

    if os.environ.get("REFINERS_BUILD_CUDA") == "0" or torch.version.hip:  # ROCm calls its GPUs cuda, and nvcc hipcc
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    for nvcc in (home and Path(home, "bin", "nvcc"), on_path and Path(on_path), Path("/usr/local/cuda/bin/nvcc")):
        if not nvcc or not nvcc.exists():
            continue
        try:
            top = re.search(r"^#\$ TOP=(.*)$", run([str(nvcc), "--dryrun", "none.cu"]), re.MULTILINE)
            release = re.search(r"release (\d+\.\d+)", run([str(nvcc), "--version"]))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"refiners: {nvcc} is not used, it does not run: {error}", file=sys.stderr)
            continue
        root = (nvcc.parent / top[1]).resolve() if top else nvcc.resolve().parent.parent
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


def find_sources(with_cuda: bool) -> dict[str, list[str]]:
    """Give the sources of the operators by the suffix that decides on their flags, those without one under "any"."""
    sources = [*CSRC.glob("common/*.cpp"), *CSRC.glob("ops/*/*.cpp"), *CSRC.glob("ops/*/*.cu")]
    groups: dict[str, list[str]] = {}
    for source in sorted(sources):
        suffix = source.stem.rsplit("_", 1)[-1]
        needs_cuda = suffix == "cuda" or source.suffix == ".cu"
        if (with_cuda or not needs_cuda) and (ON_X86 or suffix not in ISA_FLAGS):
            groups.setdefault(suffix if suffix in ISA_FLAGS else "any", []).append(str(source))
    return groups


def load_library_file() -> ModuleType:
    """Import the module that knows how a library carries its record, without the package around it."""
    spec = importlib.util.spec_from_file_location("library_file", ROOT / "python/refiners/ops/library_file.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PackageBuild(build_py):
    """Copies the package to a folder that holds nothing else: what an earlier build left there would be installed."""

    def run(self) -> None:
        """Empty the folder, then copy; the libraries come after, and their objects are kept elsewhere."""
        shutil.rmtree(Path(self.build_lib, "refiners"), ignore_errors=True)
        super().run()


class NativeBuild(BuildExtension):
    """Compiles the sources, a group for each set of flags, and links the two extensions."""

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
        if importlib.util.find_spec("torch") is None:
            raise SystemExit(
                f"refiners: torch >= {TORCH_MINIMUM} must be installed to build without isolation (its headers are "
                "needed): pip install torch, or leave --no-build-isolation out"
            )
        self.cuda = find_cuda()
        self.force = True  # what is current is for ninja to say, and a sealed library is linked again before the seal
        (self.package_folder() / NOTE).unlink(missing_ok=True)
        super().run()

    def package_folder(self) -> Path:
        """Give the folder that the libraries go to."""
        return Path(self.get_ext_fullpath("refiners._C")).parent

    def build_extensions(self) -> None:
        """Choose the compilers and how many run at once, then build the two."""
        from torch.utils import cpp_extension

        os.environ["MAX_JOBS"] = str(count_jobs())
        os.environ["CXX"] = cxx = self.compiler_word()
        if self.cuda:
            os.environ.setdefault("PYTORCH_NVCC", str(self.cuda.nvcc))  # read with ninja
            cpp_extension.CUDA_HOME = str(self.cuda.root)  # read without, for bin/nvcc only
            cpp_extension.COMMON_NVCC_FLAGS = []  # they take the operators of half types away, which CMake leaves
        # the flags of Python's own build (-g, -fwrapv, run paths) stay out: the library is the same whatever the Python
        names = ("compiler_cxx", "compiler_so", "compiler_so_cxx", "linker_exe_cxx")
        self.compiler.set_executables(**dict.fromkeys(names, cxx), linker_so_cxx=f"{cxx} -shared -Wl,-s")
        super().build_extensions()

    def compiler_word(self) -> str:
        """Give the compiler as one word, if need be a script: torch >= 2.13 quotes CXX as a whole."""
        if len(self.compiler_command) == 1:
            return self.compiler_command[0]
        script = Path(self.build_temp, "cxx").resolve()
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(self.compiler_command)} "$@"\n')
        script.chmod(0o755)
        return str(script)

    def build_extension(self, ext: Extension) -> None:
        """Compile one of the two, each group in a folder of its own, since each has its own ninja file, and link it."""
        record = self.record()
        is_host = ext.name == "refiners._host"
        groups = {"any": HOST_SOURCES} if is_host else find_sources(with_cuda=self.cuda is not None)
        # pybind11 is beyond the stable ABI: the one of torch 2.11 refuses the macro
        macros = [] if is_host else [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
        objects: list[str] = []
        for suffix, sources in groups.items():
            flags = {"cxx": self.cxx_flags(record) + ISA_FLAGS.get(suffix, []), "nvcc": self.nvcc_flags()}
            folder = f"{self.build_temp}/{ext.name}/{suffix}"
            objects += self.compiler.compile(sources, folder, macros, extra_postargs=flags)
        target = self.get_ext_fullpath(ext.name)
        libraries = [] if is_host else self.library_flags()
        self.compiler.link_shared_object(objects, target, extra_postargs=libraries, target_lang="c++")
        if not is_host:
            load_library_file().seal(Path(target), record)

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

    def cxx_flags(self, record: dict[str, object]) -> list[str]:
        """Give the flags of a C++ file: what is built, the folders of headers, and the record."""
        from torch.utils.cpp_extension import include_paths

        macros = [f"-DREFINERS_{isa.upper()}" for isa in ISA_FLAGS if ON_X86] + ["-DUSE_CUDA"] * bool(self.cuda)
        folders = include_paths() + ([str(self.cuda.root / "include")] if self.cuda else [])
        # read by host.cpp, given to all: ninja watches no header of torch, but the command, which names its version
        literal = json.dumps(json.dumps(record))
        return [*CXX_FLAGS, *macros, *(f"-isystem{path}" for path in folders), f"-DREFINERS_BUILD_RECORD={literal}"]

    def nvcc_flags(self) -> list[str]:
        """Give the flags of a CUDA file."""
        if not self.cuda:
            return []
        codes = [flag for architecture in self.cuda.architectures for flag in gencode(architecture)]
        # a macro that nobody reads: with a CPU build of torch, ninja is not told which headers a .cu includes
        headers = b"".join(path.read_bytes() for path in sorted(CSRC.rglob("*.*h")))
        watched = f"-DREFINERS_HEADERS={zlib.crc32(headers + self.cuda.version.encode())}"
        return [*NVCC_FLAGS, *codes, "-ccbin", self.compiler_command[-1], watched]

    def library_flags(self) -> list[str]:
        """Give the libraries that the operators link: torch for the CPU in any case, and the CUDA runtime, static."""
        from torch.utils.cpp_extension import library_paths

        flags = [*(f"-L{path}" for path in library_paths()), "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]
        if self.cuda:
            folders = [self.cuda.root / "lib64", self.cuda.root / "lib"]
            flags += [*(f"-L{folder}" for folder in folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return flags


if __name__ == "__main__":
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")  # ninja, of an environment that is not activated
    setup(
        ext_modules=[Extension("refiners._C", [], py_limited_api=True), Extension("refiners._host", [])],
        cmdclass={"build_py": PackageBuild, "build_ext": NativeBuild},
    )
