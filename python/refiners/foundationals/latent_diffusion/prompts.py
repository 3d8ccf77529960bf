"""Prompts of a batch."""

from collections.abc import Sequence


def pair_prompts(text: str | Sequence[str], negative_text: str | Sequence[str], guided: bool) -> list[str]:
    """List the texts to encode: the prompts, and with guidance as many negative ones before them.

    Raises:
        AssertionError: If there are several negative texts, but not as many as prompts.
        ValueError: If there is no prompt.
    """
    prompts = [text] if isinstance(text, str) else list(text)
    if not prompts:
        raise ValueError("text must be a prompt or a list of at least one, got an empty list")
    if not guided:
        return prompts
    negatives = [negative_text] * len(prompts) if isinstance(negative_text, str) else list(negative_text)
    if len(negatives) != len(prompts):
        raise AssertionError(
            f"The length of the text list and negative_text should be the same: got {len(prompts)} and {len(negatives)}"
        )
    return [*negatives, *prompts]
