"""The states a native library can be in. None of those that are in doubt is ever loaded into the test's own process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refiners.ops import geglu
from refiners.ops.library import CUDA_DTYPES, DTYPES, PACKAGE, NativeLibrary, NativeLibraryWarning, native
from refiners.ops.library_file import INTERFACE, MAGIC, UnusableLibraryError, read_record, seal
from refiners.ops.settings import OPERATORS, Settings

RECORD = {
    "version": "1.2.3",
    "interface": INTERFACE,
    "machine": "x86_64",
    "python": "CPython 3.10.1",
    "torch": "2.12.0+cpu",
    "torch_minimum": "2.11",
    "compiler": "g++ 12",
    "isas": ["avx2"],
    "cuda": None,
    "cuda_architectures": [],
}


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def make_library(folder: Path, content: bytes = b"\x7fELF no library", **changes: object) -> Path:
    path = folder / "_C.abi3.so"
    path.write_bytes(content)
    seal(path, {**RECORD, **changes})
    return path


def load(folder: Path, settings: Settings | None = None) -> tuple[NativeLibrary, str]:
    """Give the state and its one warning."""
    with pytest.warns(NativeLibraryWarning) as caught:
        state = NativeLibrary(folder, settings or Settings())
    assert len(caught) == 1
    return state, str(caught[0].message)


def test_a_record_is_read_back(tmp_path):
    record = read_record(make_library(tmp_path))
    assert record._asdict() == RECORD
    assert str(record) == (
        "refiners 1.2.3 for x86_64, built against torch 2.12.0+cpu by g++ 12, Python CPython 3.10.1, no CUDA, "
        "CPU kernels avx2"
    )


@pytest.mark.parametrize("position", [0, 8, -40, -13])
def test_a_changed_byte_is_found(position, tmp_path):
    path = make_library(tmp_path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnusableLibraryError, match="its checksum is wrong"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 1000, MAGIC], ids=["empty", "short", "text", "magic"])
def test_what_is_no_library_is_found(content, tmp_path):
    path = tmp_path / "_C.abi3.so"
    path.write_bytes(content)
    with pytest.raises(UnusableLibraryError, match="it is damaged"):
        read_record(path)


def test_a_record_of_other_fields_is_another_version(tmp_path):
    with pytest.raises(UnusableLibraryError, match="it was built by another version of refiners"):
        read_record(make_library(tmp_path, license="MIT"))


def test_a_missing_library_is_said_with_what_to_do(tmp_path):
    state, message = load(tmp_path)
    assert not state.loaded
    assert state.path is None
    assert f"It was not built: there is no _C library in {tmp_path}" in message
    assert "pip install ." in message


def test_a_note_of_the_build_is_passed_on(tmp_path):
    (tmp_path / "_build_note.txt").write_text("It was not built when refiners was installed: there is no C++ compiler")
    state, message = load(tmp_path)
    assert "there is no C++ compiler" in message
    assert state.problem == "It was not built when refiners was installed: there is no C++ compiler"


@pytest.mark.parametrize("damage", [lambda c: b"text", lambda c: c[: len(c) // 2], lambda c: c[:50] + b"\0" + c[51:]])
def test_a_damaged_library_is_not_loaded(damage, tmp_path, machine):
    path = make_library(tmp_path, b"\x7fELF" + bytes(range(256)))
    path.write_bytes(damage(path.read_bytes()))
    state, message = load(tmp_path)
    assert not state.loaded
    assert f"{path} cannot be used: it is damaged" in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine": "aarch64"}, "it was built for aarch64, this machine is x86_64"),
        ({"interface": INTERFACE + 1}, f"it has interface {INTERFACE + 1}, this version of refiners needs {INTERFACE}"),
        ({"torch_minimum": "99.1"}, f"it needs torch >= 99.1, this is torch {torch.__version__}"),
    ],
)
def test_a_mismatching_library_says_what_it_was_built_for(changes, reason, tmp_path, machine):
    make_library(tmp_path, **changes)
    state, message = load(tmp_path)
    assert not state.loaded
    assert state.problem is not None
    assert state.problem.endswith(reason)
    assert "It is refiners 1.2.3 for" in message
    assert "built against torch 2.12.0+cpu" in message


def test_a_sound_file_that_the_system_cannot_load_is_said(tmp_path, machine):
    make_library(tmp_path)
    state, message = load(tmp_path)
    assert not state.loaded
    assert "cannot be used" in message


def test_a_state_without_library_answers_all_questions(tmp_path):
    state, _ = load(tmp_path)
    assert (state.isa, state.isa_reason) == ("portable", "the native library is not loaded")
    assert state.use_isa("portable")
    assert not state.use_isa("avx2")
    assert state.explain_lora_linear("float32", has_block=True) == ("portable", state.problem)
    assert state.why_no_cuda_kernels("lora_linear", torch.float32) == state.problem
    assert not any(state.has_kernel_on("weighted_sum", torch.float32, device) for device in ("cpu", "cuda", "meta"))
    state.use_kernels("lora_linear", False)


def test_disabling_every_operator_loads_nothing_and_warns_of_nothing(tmp_path):
    state = NativeLibrary(tmp_path, Settings(disabled=frozenset(OPERATORS)))
    assert not state.loaded
    assert state.problem == "REFINERS_DISABLE_NATIVE names every operator"


def test_a_setting_that_is_not_understood_warns(tmp_path):
    everything = frozenset(OPERATORS)
    _, message = load(tmp_path, Settings(disabled=everything, problems=("REFINERS_CPU_ISA: choose from x; got y",)))
    assert message == "REFINERS_CPU_ISA: choose from x; got y. It is ignored."


SCRIPT = """
import json, sys, torch
from refiners.ops import lora_linear
from refiners.ops import geglu
from refiners.ops.library import native
x, w, down, up = torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3), torch.ones(4, 1)
y = lora_linear(x, w, None, [down], [up], torch.tensor([0.5]))
print(json.dumps([native.loaded, native.isa, native.isa_reason, y.tolist() == [[4.5] * 4] * 2]))
"""


def run_copy(folder: Path, library: Path | None, *options: str, **environment: str) -> tuple[list[object], str]:
    """Run the operator in a copy of the package with this library; give what it says and what it writes to stderr."""
    shutil.copytree(PACKAGE, folder / "refiners", ignore=shutil.ignore_patterns("_C.*", "__pycache__", "demo"))
    if library:
        shutil.copy(library, folder / "refiners")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REFINERS_")}
    result = subprocess.run(
        [sys.executable, *options, "-c", SCRIPT],
        env={**kept, **environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_a_deleted_library_stops_nothing_even_where_warnings_are_errors(tmp_path):
    said, errors = run_copy(tmp_path, None, "-W", "error")
    assert said == [False, "portable", "the native library is not loaded", True]
    assert errors.count("NativeLibraryWarning") == 1


def test_a_truncated_real_library_stops_nothing(tmp_path, needs_native):
    assert native.path is not None
    half = tmp_path / native.path.name
    half.write_bytes(native.path.read_bytes()[: native.path.stat().st_size // 2])
    said, errors = run_copy(tmp_path / "copy", half)
    assert said[0] is False
    assert said[3] is True
    assert errors.count("NativeLibraryWarning") == 1
    assert "damaged" in errors


def test_an_instruction_set_that_the_cpu_lacks_is_replaced_with_a_reason(tmp_path, needs_native):
    if native.isa == "amx":
        pytest.skip("this CPU lacks none")
    said, errors = run_copy(tmp_path, native.path, REFINERS_CPU_ISA="amx")
    assert said[0] is True
    assert said[1] != "amx"
    assert str(said[2]).startswith("REFINERS_CPU_ISA=amx, which this CPU or this build lacks")
    assert errors.count("NativeLibraryWarning") == 1


def test_the_portable_path_is_forced_without_a_warning(tmp_path, needs_native):
    said, errors = run_copy(tmp_path, native.path, "-W", "error", REFINERS_CPU_ISA="portable")
    assert said == [True, "portable", "REFINERS_CPU_ISA=portable", True]
    assert not errors


def test_the_choices_follow_the_switches(needs_native):
    if native.isa == "portable":
        pytest.skip("there are no kernels to choose")
    isa, reason = native.isa, native.isa_reason
    try:
        assert native.has_kernel("geglu", torch.float32)
        native.use_kernels("geglu", False)
        assert not native.has_kernel("geglu", torch.float32)
        native.use_kernels("geglu", True)
        assert native.use_isa("portable")
        assert not native.has_kernel("geglu", torch.float32)
    finally:
        native.use_kernels("geglu", True)
        native.use_isa(isa)
        native.isa_reason = reason
    assert native.has_kernel("geglu", torch.float32)
    cpu = torch.device("cpu")
    native.force_lora_linear_plan("block")
    assert native.takes_lora_block(torch.float32, cpu)
    native.force_lora_linear_plan("update")
    assert not native.takes_lora_block(torch.float32, cpu)
    native.force_lora_linear_plan(None)


def test_a_device_has_the_kernels_that_the_library_has_for_it(needs_native):
    for operator in ("geglu", "weighted_sum"):
        for dtype in DTYPES:
            on_cuda = operator == "weighted_sum" and native.record.cuda is not None and dtype in CUDA_DTYPES
            assert native.has_kernel_on(operator, dtype, "cuda") == (
                on_cuda and operator not in native.settings.disabled
            )
            assert native.has_kernel_on(operator, dtype, "cpu") == native.has_kernel(operator, dtype)
            assert not native.has_kernel_on(operator, dtype, "meta")


def test_a_function_can_be_compiled_before_it_was_called():
    native.use_kernels("geglu", True)  # whatever was known of the kernels is forgotten
    compiled = torch.compile(geglu, backend="eager", fullgraph=True)
    assert compiled(torch.randn(3, 8)).shape == (3, 4)
