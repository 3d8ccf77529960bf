"""The texts of a batch: paired, and warned of where they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion import DoubleTextEncoder
from refiners.foundationals.latent_diffusion.prompts import encode_prompts, pair_prompts, warn_of_cuts

LONG = "cat " * 75 + "In a  blue hat, smiling"


def text_encoder(dim: int) -> CLIPTextEncoder:
    return CLIPTextEncoder(embedding_dim=dim, num_layers=2, num_attention_heads=2, feedforward_dim=8)


def test_negative_texts_come_first() -> None:
    assert pair_prompts(["a", "b"], "c", guided=True) == ["c", "c", "a", "b"]
    assert pair_prompts("a", ["c"], guided=True) == ["c", "a"]
    assert pair_prompts(("a", "b"), "c", guided=False) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "negative", "message"),
    [
        (None, "", "text must be a prompt or a list of at least one, got None"),
        (["a", None], "", "text must be .* got a list with None"),
        ("a", None, "negative_text must be a prompt or a list of at least one, got None"),
        ("a", [3], "negative_text must be .* got a list with 3"),
    ],
)
def test_what_is_no_text_is_told(text: Any, negative: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pair_prompts(text, negative, guided=True)


def test_cuts_are_warned_of_once_for_all_texts() -> None:
    with pytest.warns(UserWarning, match="a prompt can have 75 tokens") as caught:
        warn_of_cuts(CLIPTokenizer(), [LONG, "short", LONG, "", "dog " * 76])
    assert [str(warning.message) for warning in caught] == [
        "a prompt can have 75 tokens: these ends of longer ones were cut off and have no effect:"
        " 'in a blue hat, smiling', 'dog'"
    ]


def test_a_long_cut_is_shown_in_part() -> None:
    with pytest.warns(UserWarning, match="a prompt can have 75 tokens") as caught:
        warn_of_cuts(CLIPTokenizer(), ["cat " * 10_000])
    assert len(str(caught[0].message)) < 450


def test_two_encoders_warn_once() -> None:
    encoder = DoubleTextEncoder(text_encoder(8), text_encoder(16))
    with pytest.warns(UserWarning, match="a prompt can have 75 tokens") as caught, torch.no_grad():
        encode_prompts(encoder, LONG, "", guided=True)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_texts_that_fit_are_not_warned_of() -> None:
    with torch.no_grad():
        encode_prompts(text_encoder(8), ["cat " * 75, ""], "", guided=True)
    warn_of_cuts(None, [LONG])  # an encoder without a tokenizer
    assert encode_prompts(fl.Chain(fl.Lambda(len)), LONG, "", guided=True) == 2
