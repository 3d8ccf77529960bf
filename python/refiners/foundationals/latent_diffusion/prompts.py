"""Prompts of a batch."""

from collections.abc import Sequence
from typing import Any

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion.checks import as_texts
from refiners.foundationals.latent_diffusion.warning import warn_user

_MOST_SHOWN = 300  # characters of what is cut off


def encode_prompts(
    encoder: fl.Chain, text: str | Sequence[str], negative_text: str | Sequence[str], guided: bool
) -> Any:
    """Encode prompts, and with guidance as many negative ones before them, in one batch.

    Raises:
        AssertionError: If there are several negative texts, but not as many as prompts.
        TypeError: If an argument is neither a text nor a list of them.
        ValueError: If there is no prompt.

    Warns:
        UserWarning: If a text is too long for the encoder, with what of it is cut off.
    """
    texts = pair_prompts(text, negative_text, guided)
    warn_of_cuts(encoder.find(CLIPTokenizer), texts)
    return encoder(texts)


def pair_prompts(text: str | Sequence[str], negative_text: str | Sequence[str], guided: bool) -> list[str]:
    """List the texts to encode: the prompts, and with guidance as many negative ones before them.

    Raises:
        AssertionError: If there are several negative texts, but not as many as prompts.
        TypeError: If an argument is neither a text nor a list of them.
        ValueError: If there is no prompt.
    """
    prompts = as_texts("text", text)
    if not guided:
        return prompts
    negatives = [negative_text] * len(prompts) if isinstance(negative_text, str) else negative_text
    negatives = as_texts("negative_text", negatives)
    if len(negatives) != len(prompts):
        raise AssertionError(
            f"The length of the text list and negative_text should be the same: got {len(prompts)} and {len(negatives)}"
        )
    return [*negatives, *prompts]


def warn_of_cuts(tokenizer: CLIPTokenizer | None, texts: Sequence[str]) -> None:
    """Warn once of all texts that are too long for a tokenizer, with what of them is cut off."""
    if tokenizer is None:
        return
    cuts = [cut for text in dict.fromkeys(texts) if (cut := tokenizer.cut_off(text))]
    if not cuts:
        return
    parts = ", ".join(repr(cut if len(cut) <= _MOST_SHOWN else f"{cut[:_MOST_SHOWN]}...") for cut in cuts)
    most = tokenizer.sequence_length - 2
    warn_user(f"a prompt can have {most} tokens: these ends of longer ones were cut off and have no effect: {parts}")
