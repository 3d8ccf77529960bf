"""Configurations of PEFT: tables of expressions as PEFT reads them, and what is refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from refiners.conversion.lora.patterns import Patterns
from refiners.conversion.lora.settings import LoraSettings

NAMES = [
    "to_q",
    "a.to_q",
    "a.b.to_q",
    "ato_q",
    "a.to_k",
    "down_blocks.0.attn1.to_q",
    "down_blocks.10.attn1.to_q",
    "a.b",
]
EXPRESSIONS = [
    "to_q",
    "a.b",
    r"to_[qk]",
    r"attn\d\.to_q",
    ".*q",
    "^to_q",
    "a|b",
    r"down_blocks\.\d+\..*",
    "o_q",
    "(a.)?b",
    r"(.+\.)*to_q",
    r"^(?:.+\.)*to_q|a.b",
    r"(.*\.)+to_[qk]",
    r"^(.+\.)+b",
    r"(.+\.)?b|to_k",
    "^a.to_q",
    "^(a|ato_q)",
    "(^a.to_q)",
    ".*attn1.*to_q",
    ".*b.to|a.*k",
]


def as_peft(table: dict[str, Any], name: str) -> Any:
    """Find what PEFT's documentation says: the first expression that the end of a name is."""
    return next((value for each, value in table.items() if re.match(rf"(.*\.)?({each})$", name)), None)


def test_tables_of_expressions() -> None:
    rng = random.Random(0)
    for _ in range(300):
        chosen = rng.sample(EXPRESSIONS, rng.randrange(1, 6))
        table = {each: number for number, each in enumerate(chosen)}
        for name in NAMES:
            assert Patterns(table).find(name) == as_peft(table, name), (table, name)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(", "'\\(' is no regular expression: missing \\)"),
        ("*", "'\\*' is no regular expression"),
        ("(a+)+$", "could take very long to search: at most 3 repetitions are allowed, and none of a group"),
        ("(a|ab)*c", "and none of a group"),
        (".*.*.*.*", "at most 3 repetitions"),
        ("a?" * 30, "at most 3 repetitions"),
        ("(?:ab){2,}", "and none of a group"),
        ("(a|a)" * 20, "has more than 16 alternatives"),
        ("a" * 1001, "is longer than 1000 characters"),
        (r"(.+\.)*(a)\1", "and none of a group"),
        ("(?x:(a+) *)z", "has flags, which are not supported"),
    ],
)
def test_expressions_that_are_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patterns({expression: 1})


TRIPLE = r"[\w.]*[\w.]*[\w.]*z"
LONG = ".".join(["a"] * 149)  # about 300 characters


@pytest.mark.parametrize("expression", [TRIPLE, "(a|.)(a|.)(a|.)(a|.)[a.]*[a.]*z"])
def test_expressions_that_take_too_long_in_a_name(expression: str) -> None:
    with pytest.raises(ValueError, match="takes too long to search in a name of 297 characters"):
        Patterns({expression: 1}).find(LONG)
    assert Patterns({expression: 1}).find("a.aaaaz") == 1


def test_names_that_no_layer_has() -> None:
    patterns = Patterns({TRIPLE: 1, "a.z": 2, "(a|b).y": 3})
    name = "unet." + ".".join(["a"] * 450)
    assert patterns.find(name) is None
    assert patterns.find(f"{name}.z") == 2
    assert patterns.find(f"{name}.y") == 3


def test_many_expressions_that_take_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("refiners.conversion.lora.patterns._MOST_SECONDS", 0.1)
    table = {f"[\\w.]*[\\w.]*[\\w.]*z{number}": 3.0 for number in range(600)}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha_pattern": table, "rank_pattern": {}}))
    settings = LoraSettings.of_file(tmp_path, {})
    names = [f"base_model.model.down_blocks.{number}.transformer_blocks.0.attn1.to_q" for number in range(1000)]
    with pytest.raises(ValueError, match=r"adapter_config.json: alpha_pattern: the expressions take too long"):
        list(map(settings.alpha, names))


def test_all_names_of_a_table_that_a_program_wrote() -> None:
    names = [f"down_blocks.{number}.attn1.to_q" for number in range(2000)]
    patterns = Patterns({f"^{name}": number for number, name in enumerate(names)})
    assert [patterns.find(name) for name in names] == list(range(2000))
    assert patterns.find(f"a.{names[0]}") is None


@pytest.mark.parametrize("expression", [r"a\+\+\+\+", "[*+?{}]{2}", "(?:a|b)x", "(?=a)a", "a{2}b{3}c{4}", r"\(\)*"])
def test_expressions_that_are_no_repetitions(expression: str) -> None:
    Patterns({expression: 1}).find("a.b")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "r must be a positive whole number, got 0"),
        ({"r": 2.5}, "r must be a positive whole number, got 2.5"),
        ({"r": "2"}, "r must be a positive whole number, got '2'"),
        ({"r": True}, "r must be a positive whole number, got True"),
        ({"r": 10**400}, "r must be a positive whole number, got 1000"),
        ({"lora_alpha": "4"}, "lora_alpha must be a finite number, got '4'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, got nan"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number, got 1000"),
        ({"lora_alpha": []}, "lora_alpha must be a finite number, got a list"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false, got 'yes'"),
        ({"rank_pattern": ["a"]}, "rank_pattern must be an object, got a list"),
        ({"rank_pattern": {"a": 0}}, "rank_pattern of 'a' must be a positive whole number, got 0"),
        ({"feedforward_modules": 3}, "feedforward_modules must be a text or a list of them, got 3"),
        ({"feedforward_modules": ["a", 3]}, "feedforward_modules must be a text or a list of them, got a list"),
        ({"feedforward_modules": "("}, "feedforward_modules: '.*' is no regular expression"),
        ({"peft_type": "OFT", "r": 0}, "peft_type 'OFT' is not supported, expected one of LORA, LOHA, LOKR, IA3"),
        ({"peft_type": ["A"]}, "peft_type a list is not supported"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"init_lora_weights": "LoftQ"}, "init_lora_weights is 'LoftQ'"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern: '\\(' is no regular expression"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"adapter_config.json: {message}"):
        LoraSettings.of_file(tmp_path, {})
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    with pytest.raises(ValueError, match=rf"x.safetensors: lora_adapter_metadata: unet.{message}"):
        LoraSettings.of_file(tmp_path / "x.safetensors", metadata)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_beginnings_that_leave_the_base(start: Any) -> None:
    assert LoraSettings({"": {"init_lora_weights": start, "lora_alpha": 3}}).alpha("a") == 3


def test_the_network_of_a_name() -> None:
    configs = {"unet": {"lora_alpha": 1}, "text_encoder": {"lora_alpha": 2}, "a.b": {"alpha": 3}, "": {"lora_alpha": 4}}
    settings = LoraSettings(configs)
    names = {"unet.x": 1, "text_encoder.x.y": 2, "text_encoder_2.x": 4, "a.b.c": 3, "a.b": 4, "unet": 4}
    assert {name: settings.alpha(name) for name in names} == names
    assert LoraSettings().alpha("unet.x") is None
