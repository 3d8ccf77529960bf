"""What a LoRA file says of itself has the names that other programs look for."""

from __future__ import annotations

from typing import Any

import pytest

from refiners.conversion.lora import lora_metadata


def test_each_field_has_its_name() -> None:
    said = lora_metadata(
        title="Ink",
        author="me",
        description="black",
        license="MIT",
        trigger_words=["ink", "in black"],
        base_model="sdxl",
        rank=8,
        alpha=4.0,
    )
    assert said == {
        "modelspec.title": "Ink",
        "modelspec.author": "me",
        "modelspec.description": "black",
        "modelspec.license": "MIT",
        "modelspec.trigger_phrase": "ink, in black",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
    }
    assert lora_metadata() == {}
    assert lora_metadata(base_model="mine.safetensors", trigger_words="ink") == {
        "ss_sd_model_name": "mine.safetensors",
        "modelspec.trigger_phrase": "ink",
    }


@pytest.mark.parametrize("field", ["title", "author", "description", "license", "base_model"])
def test_a_text_must_be_one(field: str) -> None:
    wrong: dict[str, Any] = {field: 3}
    with pytest.raises(TypeError, match=f"{field} must be a text, got int"):
        lora_metadata(**wrong)


def test_words_must_be_texts() -> None:
    words: Any = ["ink", 3]
    with pytest.raises(TypeError, match=r"trigger_words must be texts, got \('ink', 3\)"):
        lora_metadata(trigger_words=words)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("rank", -3, ValueError, "rank must be at least 1, got -3"),
        ("rank", 2.5, TypeError, "rank must be a whole number or a text, got float"),
        ("rank", True, TypeError, "rank must be a whole number or a text, got bool"),
        ("alpha", float("nan"), ValueError, "alpha must be finite, got nan"),
        ("alpha", [4], TypeError, "alpha must be a number or a text, got list"),
    ],
)
def test_numbers_must_be_possible(field: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lora_metadata(**{field: value})


def test_numbers_may_be_texts() -> None:
    assert lora_metadata(rank="Dynamic", alpha="4")["ss_network_dim"] == "Dynamic"
