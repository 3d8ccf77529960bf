import json
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

from refiners import doctor
from refiners.ops.library import NativeLibrary, NativeLibraryWarning, native
from refiners.ops.settings import OPERATORS, Settings


def report_of(capsys, *argv: str) -> str:
    assert doctor.main(argv) == 0
    return capsys.readouterr().out


def test_it_names_versions_paths_and_reasons(capsys):
    text = report_of(capsys)
    assert f"torch: {torch.__version__}" in text
    assert f"loaded: {'yes' if native.loaded else 'no'}" in text
    assert "cpu float64: portable: " in text
    assert f"instruction set: {native.isa}\n" in text


def test_json_holds_the_same(capsys):
    found = json.loads(report_of(capsys, "--json"))
    assert found == json.loads(json.dumps(doctor.report()))
    assert found["native library"]["loaded"] == native.loaded
    assert found["block cache"]["blocks"] == 0
    assert found["block cache"]["limit MiB"] > 0


def test_a_wrong_option_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--jason"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --jason" in capsys.readouterr().err


def test_a_missing_library_is_reported_with_its_reason(monkeypatch, tmp_path, capsys):
    with pytest.warns(NativeLibraryWarning):
        monkeypatch.setattr(doctor, "native", NativeLibrary(tmp_path, Settings()))
    found = json.loads(report_of(capsys, "--json"))
    reason = f"It was not built: there is no _C library in {tmp_path}"
    library = found["native library"]
    assert (library["file"], library["loaded"], library["problem"]) == (None, False, reason)
    assert found["operators"]["lora_linear"]["cpu bfloat16"] == f"portable: {reason}"


def test_a_damaged_library_is_reported_with_its_file(monkeypatch, tmp_path, capsys):
    (tmp_path / "_C.abi3.so").write_text("this is text")
    with pytest.warns(NativeLibraryWarning):
        monkeypatch.setattr(doctor, "native", NativeLibrary(tmp_path, Settings()))
    library = json.loads(report_of(capsys, "--json"))["native library"]
    assert library["file"] == str(tmp_path / "_C.abi3.so")
    assert "is damaged" in library["problem"]


def test_disabled_operators_are_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "native", NativeLibrary(tmp_path, Settings(disabled=frozenset(OPERATORS))))
    path = json.loads(report_of(capsys, "--json"))["operators"]["lora_linear"]["cpu float32"]
    assert path == "portable: REFINERS_DISABLE_NATIVE names every operator"


def test_a_host_module_of_another_python_is_reported(monkeypatch, tmp_path, capsys):
    def refuse(name: str) -> None:
        raise ImportError(f"no module named {name}")

    (tmp_path / "_host.cpython-39-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(doctor, "import_module", refuse)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    found = json.loads(report_of(capsys, "--json"))
    assert found["host module"]["loaded"] is False
    assert found["host module"]["problem"].startswith("built for another Python: _host.cpython-39-x86_64-linux-gnu.so")
    assert found["cpu"]["features"] is None


@pytest.mark.parametrize("content", ["text", "half"])
def test_a_damaged_host_module_is_reported_and_takes_nothing_down(content, monkeypatch, tmp_path, capsys):
    host = pytest.importorskip("refiners._host", exc_type=ImportError)
    whole = Path(host.__file__).read_bytes()
    damaged = b"no library" if content == "text" else whole[: len(whole) // 3]
    (tmp_path / f"_host{EXTENSION_SUFFIXES[0]}").write_bytes(damaged)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    found = json.loads(report_of(capsys, "--json"))["host module"]
    assert found["loaded"] is False
    assert found["problem"].startswith(("damaged: _host", "does not load: ImportError: "))


def test_the_forced_instruction_set_is_reported(isa_in_use, capsys):
    found = json.loads(report_of(capsys, "--json"))
    assert found["native library"]["instruction set"] == isa_in_use
    expected = "portable: no instruction set" if isa_in_use == "portable" else f"native (update, {isa_in_use})"
    assert found["operators"]["lora_linear"]["cpu float32"].startswith(expected)


@pytest.fixture(params=["portable", "avx2"])
def isa_in_use(request):
    before = native.isa, native.isa_reason
    if not native.loaded or not native.use_isa(request.param):
        pytest.skip(f"no {request.param} here, or no library")
    yield request.param
    native.use_isa(before[0])
    native.isa_reason = before[1]


def test_a_cuda_device_without_kernels_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(NativeLibrary, "why_no_cuda_kernels", lambda *_: "the library was built without CUDA")
    for operator in ("lora_linear", "weighted_sum"):
        paths = doctor.report()["operators"][operator]
        assert paths["cuda bfloat16"] == "portable: the library was built without CUDA"
    assert "cuda bfloat16" not in doctor.report()["operators"]["geglu"]


def test_the_environment_that_steers_is_shown(monkeypatch):
    monkeypatch.setenv("REFINERS_CPU_ISA", "avx2")
    assert doctor.report()["environment"]["REFINERS_CPU_ISA"] == "avx2"


def test_a_variable_that_nothing_reads_is_named(monkeypatch, capsys):
    for name in doctor.report()["unknown variables"]:
        monkeypatch.delenv(name)
    assert doctor.report()["unknown variables"] == {}
    monkeypatch.setenv("REFINERS_CPU_IAS", "avx2")
    assert doctor.report()["unknown variables"] == {"REFINERS_CPU_IAS": "nothing reads it; is REFINERS_CPU_ISA meant?"}
    assert "unknown variables:\n  REFINERS_CPU_IAS: nothing reads it; is REFINERS_CPU_ISA meant?" in report_of(capsys)


def test_the_real_host_module_is_used_where_it_is_there():
    host = pytest.importorskip("refiners._host", exc_type=ImportError)
    features = {name for name, there in host.cpu_features().items() if there}
    assert set(doctor.report()["cpu"]["features"]) == features
    assert import_module("refiners._host") is host
