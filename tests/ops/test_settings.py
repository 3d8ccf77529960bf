import re
from pathlib import Path

import pytest

from refiners.ops.settings import OPERATORS, VARIABLES, Settings, read_settings, unknown_variables

ROOT = Path(__file__).parents[2]


def test_nothing_set_asks_for_nothing():
    assert read_settings({}) == Settings()


@pytest.mark.parametrize("value", ["lora_linear", " lora_linear , "])
def test_operators_are_disabled_by_name(value):
    assert read_settings({"REFINERS_DISABLE_NATIVE": value}).disabled == {"lora_linear"}


@pytest.mark.parametrize("value", ["all", "all,lora_linear"])
def test_operators_are_disabled_all_together(value):
    assert read_settings({"REFINERS_DISABLE_NATIVE": value}).disabled == set(OPERATORS)


def test_an_unknown_operator_is_named_with_the_choices():
    settings = read_settings({"REFINERS_DISABLE_NATIVE": "lora_linaer"})
    assert settings.disabled == frozenset()
    assert settings.problems == (
        "REFINERS_DISABLE_NATIVE: choose from all, attention, conv2d, geglu, group_norm, linear, lora_linear, "
        "weighted_sum; got lora_linaer",
    )


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
def test_an_instruction_set_is_taken(isa):
    assert read_settings({"REFINERS_CPU_ISA": isa}) == Settings(isa=isa)


def test_an_unknown_instruction_set_is_named_with_the_choices():
    settings = read_settings({"REFINERS_CPU_ISA": "sse9"})
    assert settings.isa is None
    assert settings.problems == ("REFINERS_CPU_ISA: choose from portable, avx2, avx512, amx; got sse9",)


def test_the_size_of_the_cache_is_a_whole_number():
    assert read_settings({"REFINERS_CACHE_MIB": "512"}).cache_mib == 512
    assert read_settings({"REFINERS_CACHE_MIB": "0"}).cache_mib == 0
    wrong = read_settings({"REFINERS_CACHE_MIB": "-1"})
    assert wrong.cache_mib is None
    assert wrong.problems == ("REFINERS_CACHE_MIB: give a whole number of MiB, 0 for no cache; got -1",)


def test_a_variable_that_nothing_reads_is_named_with_what_may_be_meant():
    environment = dict.fromkeys(["REFINERS_DISABLE_NATIV", "REFINERS_QQ", "OTHER", *VARIABLES], "1")
    assert unknown_variables(environment) == {
        "REFINERS_DISABLE_NATIV": "nothing reads it; is REFINERS_DISABLE_NATIVE meant?",
        "REFINERS_QQ": f"nothing reads it; there are {', '.join(VARIABLES)}",
    }


def test_every_variable_that_is_read_is_known():
    read = re.compile(r'(?:environ(?:ment)?(?:\.get|\.pop|\.setdefault)?|getenv)[\[(]\s*"(REFINERS_\w+)"')
    sources = [
        path for folder in ("python", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {name for path in [ROOT / "setup.py", *sources] for name in read.findall(path.read_text())}
    assert {"REFINERS_BUILD_CUDA", "REFINERS_CPU_ISA"} <= found <= set(VARIABLES)
