import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "check_ptxas.py"

CLEAN = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4packIfLi4EEv' for 'sm_80'
ptxas info    : Function properties for _Z4packIfLi4EEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 36 registers, used 0 barriers, 576 bytes cmem[0]
ptxas info    : Compile time = 9.138 ms
"""
DIRTY = """ptxas info    : Compiling entry function '_Z4gemmv' for 'sm_90a'
ptxas info    : Function properties for _Z4gemmv
    {} bytes stack frame, {} bytes spill stores, {} bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


@pytest.fixture(scope="module")
def check_ptxas():
    spec = importlib.util.spec_from_file_location("check_ptxas", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_clean_kernel_is_read(check_ptxas):
    (kernel,) = check_ptxas.parse(CLEAN)
    assert kernel == ("_Z4packIfLi4EEv", "sm_80", 0, 0, 0, 36)
    assert kernel.is_clean


@pytest.mark.parametrize("numbers", [(8, 0, 0), (0, 16, 0), (0, 0, 4)])
def test_a_stack_frame_or_a_spill_is_not_clean(numbers, check_ptxas):
    first, second = check_ptxas.parse(CLEAN + DIRTY.format(*numbers))
    assert first.is_clean
    assert second == ("_Z4gemmv", "sm_90a", *numbers, 255)
    assert not second.is_clean


def test_a_report_that_is_not_understood_is_an_error(check_ptxas):
    with pytest.raises(ValueError, match="no report of ptxas"):
        check_ptxas.parse(CLEAN.replace("spill", "leak"))


def test_a_spilling_kernel_fails(monkeypatch, capsys, check_ptxas):
    monkeypatch.setattr(sys, "argv", ["check_ptxas.py"])
    monkeypatch.setattr(check_ptxas, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(check_ptxas, "compile_source", lambda *_: check_ptxas.parse(DIRTY.format(0, 16, 0)))
    assert check_ptxas.main() == 1
    assert "FAIL sm_90a: 255 registers, stack 0, spills 16 + 0 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "status"), [([], 0), (["--require"], 1)])
def test_without_nvcc_it_fails_where_nvcc_is_required(argv, status, monkeypatch, check_ptxas):
    monkeypatch.setattr(sys, "argv", ["check_ptxas.py", *argv])
    monkeypatch.setattr(check_ptxas, "find_nvcc", lambda: None)
    assert check_ptxas.main() == status


@pytest.mark.slow
def test_all_kernels_are_clean(monkeypatch, check_ptxas):
    if check_ptxas.find_nvcc() is None:
        pytest.skip("no nvcc")
    monkeypatch.setattr(sys, "argv", ["check_ptxas.py"])
    assert check_ptxas.main() == 0
