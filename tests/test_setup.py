import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]
PATH = os.environ["PATH"] + os.pathsep + sysconfig.get_path("scripts")  # as setup.py finds ninja


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("refiners_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("8.0", ["-gencode=arch=compute_80,code=sm_80"]),
        ("9.0a", ["-gencode=arch=compute_90a,code=sm_90a"]),
        ("12.0+PTX", ["-gencode=arch=compute_120,code=sm_120", "-gencode=arch=compute_120,code=compute_120"]),
    ],
)
def test_an_architecture_becomes_flags_of_nvcc(name, flags, builder):
    assert builder.gencode(name) == flags


def test_an_architecture_that_is_no_number_is_named(builder):
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST holds 'Hopper'"):
        builder.gencode("Hopper")


@pytest.mark.parametrize("text", ["8.0;9.0a", "8.0 9.0a", " 8.0, 9.0a "])
def test_the_list_of_architectures_is_honoured(text, builder, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert builder.choose_architectures(Path("/no/nvcc")) == ["8.0", "9.0a"]


def test_without_a_gpu_the_default_is_what_nvcc_knows_of_the_release_list(builder, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(builder, "run", lambda command: "sm_80\nsm_86\nsm_90\nsm_120\n")
    assert builder.choose_architectures(Path("/no/nvcc")) == ["8.0", "8.6", "9.0a", "12.0+PTX"]


def test_with_gpus_the_default_is_theirs(builder, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda i: [(8, 6), (9, 0), (8, 6)][i])
    assert builder.choose_architectures(Path("/no/nvcc")) == ["8.6", "9.0a"]


def test_cuda_can_be_left_out(builder, monkeypatch):
    monkeypatch.setenv("REFINERS_BUILD_CUDA", "0")
    assert builder.find_cuda() is None


def test_a_torch_for_rocm_gets_no_cuda(builder, monkeypatch):
    monkeypatch.setattr("torch.version.hip", "6.4")
    assert builder.find_cuda() is None


def test_a_folder_without_toolkit_is_not_cuda(builder, monkeypatch, tmp_path, capsys):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'release 12.4'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = builder.find_cuda()
    assert found is None or found.root != tmp_path
    assert f"{nvcc} is not used, there is no complete toolkit around it" in capsys.readouterr().err


def test_a_toolkit_behind_a_wrapper_script_is_found(builder, monkeypatch, tmp_path):
    (tmp_path / "toolkit/include").mkdir(parents=True)
    (tmp_path / "toolkit/include/cuda_runtime_api.h").touch()
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/nvcc"
    wrapper.write_text("#!/bin/sh\necho '#$ TOP=../toolkit'\necho 'Cuda compilation tools, release 12.4, V12.4.1'\n")
    wrapper.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setattr(shutil, "which", lambda _: str(wrapper))
    assert builder.find_cuda() == (wrapper, (tmp_path / "toolkit").resolve(), "12.4", ["8.0"])


def test_an_nvcc_that_does_not_run_is_passed_over(builder, monkeypatch, tmp_path, capsys):
    broken = tmp_path / "bin" / "nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no toolkit here >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("REFINERS_BUILD_CUDA", raising=False)
    found = builder.find_cuda()
    assert found is None or found.nvcc != broken
    assert f"{broken} is not used, it does not run" in capsys.readouterr().err


@pytest.mark.parametrize("cxx", ["", "no-such-compiler"])
def test_a_missing_compiler_is_a_reason_not_to_build(cxx, builder, monkeypatch):
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(builder.CannotBuildError, match="there is no C\\+\\+ compiler"):
        builder.find_compiler()


def test_cxx_may_carry_a_launcher(builder, monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert builder.find_compiler() == ["ccache", "g++"]


def test_jobs_are_bounded_by_memory_and_by_request(builder, monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_AVPHYS_PAGES": 10 << 20, "SC_PAGE_SIZE": 1024}[name])
    assert builder.count_jobs() == 2  # 10 GiB
    monkeypatch.setenv("MAX_JOBS", "5")
    assert builder.count_jobs() == 5


def write_sources(folder):
    for name in ["common/cpu_features.cpp", "ops/op/op_cpu.cpp", "ops/op/op_avx2.cpp", "ops/op/op_avx512.cpp"]:
        path = folder / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"int {path.stem}() {{ return 0; }}\n")


@pytest.mark.parametrize("on_x86", [True, False])
@pytest.mark.parametrize("with_cuda", [True, False])
def test_sources_follow_from_what_is_there(with_cuda, on_x86, builder, monkeypatch, tmp_path):
    write_sources(tmp_path)
    for name in ["op_cuda.cpp", "op_kernel.cu"]:
        (tmp_path / "csrc/ops/op" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builder, "ON_X86", on_x86)
    cuda = ["csrc/ops/op/op_cuda.cpp", "csrc/ops/op/op_kernel.cu"] * with_cuda
    isas = {name: [f"csrc/ops/op/op_{name}.cpp"] for name in ("avx2", "avx512")} if on_x86 else {}
    expected = {"any": ["csrc/common/cpu_features.cpp", "csrc/ops/op/op_cpu.cpp", *cuda], **isas}
    assert builder.find_sources(with_cuda) == expected


def make_build(builder, cuda=None):
    build = builder.NativeBuild(Distribution())
    build.ensure_finalized()
    build.compiler_command, build.cuda = ["c++"], cuda
    return build


@pytest.mark.parametrize("with_cuda", [True, False])
def test_headers_and_macros_follow_from_what_is_there(with_cuda, builder):
    cuda = builder.Cuda(Path("/cuda/bin/nvcc"), Path("/cuda"), "12.4", ["8.0"]) if with_cuda else None
    build = make_build(builder, cuda)
    assert ("-isystem/cuda/include" in build.cxx_flags({})) == with_cuda
    assert ("-DUSE_CUDA" in build.cxx_flags({})) == with_cuda
    assert ("-lcudart_static" in build.library_flags()) == with_cuda
    assert ("-gencode=arch=compute_80,code=sm_80" in build.nvcc_flags()) == with_cuda


def test_a_change_of_a_header_changes_the_command_of_nvcc(builder, monkeypatch, tmp_path):
    build = make_build(builder, builder.Cuda(Path("/cuda/bin/nvcc"), Path("/cuda"), "12.4", ["8.0"]))
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    header = tmp_path / "csrc/common/load.cuh"
    header.touch()
    before = build.nvcc_flags()
    assert build.nvcc_flags() == before
    header.write_text("// changed")
    assert build.nvcc_flags() != before


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no compiler")
@pytest.mark.skipif(not shutil.which("ninja", path=PATH), reason="there is no ninja")
@pytest.mark.parametrize("command", [["c++"], ["env", "c++"]], ids=["compiler", "launcher and compiler"])
def test_only_what_changed_is_compiled_again(command, builder, monkeypatch, tmp_path):
    write_sources(tmp_path)
    (tmp_path / "csrc/host.cpp").write_text("const char* record = REFINERS_BUILD_RECORD;\nint TORCH_TARGET_VERSION;\n")
    header = tmp_path / "csrc/common/header.h"
    header.touch()
    with (tmp_path / "csrc/ops/op/op_cpu.cpp").open("a") as file:
        file.write('#include "../../common/header.h"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", PATH)
    for name in ("CXX", "MAX_JOBS"):
        monkeypatch.setenv(name, "")  # so that what the build sets is undone
    monkeypatch.setenv("REFINERS_BUILD_CUDA", "0")
    monkeypatch.setattr(builder, "find_compiler", lambda: command)

    def compiled() -> set[str]:
        extensions = [
            builder.Extension("refiners._C", [], py_limited_api=True),
            builder.Extension("refiners._host", []),
        ]
        build = builder.NativeBuild(Distribution({"name": "refiners", "version": "1.0", "ext_modules": extensions}))
        build.ensure_finalized()
        started = time.time_ns()
        build.run()
        assert {path.name.partition(".")[0] for path in Path(build.build_lib).rglob("*.so")} == {"_C", "_host"}
        objects = Path(build.build_temp).rglob("*.o")
        return {path.stem for path in objects if path.stat().st_mtime_ns >= started}

    everything = {"cpu_features", "op_cpu", "host", *(["op_avx2", "op_avx512"] if builder.ON_X86 else [])}
    assert compiled() == everything
    assert compiled() == set()
    header.write_text("// changed")
    assert compiled() == {"op_cpu"}
    monkeypatch.setattr(builder, "CXX_FLAGS", [*builder.CXX_FLAGS, "-DANOTHER"])
    assert compiled() == everything


def test_what_an_earlier_build_left_is_not_packed(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for path in ("python/refiners/__init__.py", "python/refiners/kept.py", "lib/refiners/removed/__init__.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "lib", "bdist_wheel"]
    environment = {**os.environ, "REFINERS_BUILD_NATIVE": "0"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("refiners/")}
    assert packed == {"refiners/__init__.py", "refiners/kept.py"}
