"""What a LoRA file says of itself, by the names that other programs look for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from refiners.conversion.diffusion import Family


class _Base(NamedTuple):
    architecture: str
    version: str


_BASES: Mapping[Family, _Base] = {
    "sd1": _Base("stable-diffusion-v1/lora", "sd_v1"),
    "sd2": _Base("stable-diffusion-v2-768-v/lora", "sd_v2"),
    "sdxl": _Base("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
}
_STALE = (  # hashes of the tensors, and settings that are written anew
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"),
    "lora_adapter_metadata",
)


def lora_metadata(
    *,
    title: str | None = None,
    author: str | None = None,
    description: str | None = None,
    license: str | None = None,
    trigger_words: str | Iterable[str] = (),
    base_model: str | None = None,
    rank: int | str | None = None,
    alpha: float | str | None = None,
) -> dict[str, str]:
    """Name what a LoRA file is to say of itself as programs expect it, for `metadata` of the functions that write one.

    The keys `modelspec.*` are those of Stability AI's model metadata standard, the keys `ss_*` those of
    kohya-ss/sd-scripts. Other keys can be added to what is returned.

    Args:
        title: What users call it: `modelspec.title`.
        author: Who made it: `modelspec.author`.
        description: What it does: `modelspec.description`.
        license: Under which terms it may be used: `modelspec.license`.
        trigger_words: What a prompt must say, one text or several: `modelspec.trigger_phrase`, with commas between.
        base_model: What it was made for. `"sd1"`, `"sd2"` or `"sdxl"` give `modelspec.architecture` and
            `ss_base_model_version`, any other text `ss_sd_model_name`.
        rank: Its rank: `ss_network_dim`, a positive number, or a text such as `"Dynamic"`.
        alpha: Its alpha: `ss_network_alpha`, a finite number, or a text.

    Raises:
        TypeError: If a text is none, or a number neither a number nor a text.
        ValueError: If the rank is no positive number, or alpha no finite one.
    """
    words = (trigger_words,) if isinstance(trigger_words, str) else tuple(trigger_words)
    for name, text in {"title": title, "author": author, "description": description, "license": license}.items():
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} must be a text, got {type(text).__name__}")
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"trigger_words must be texts, got {words!r}")
    if base_model is not None and not isinstance(base_model, str):
        raise TypeError(f"base_model must be a text, got {type(base_model).__name__}")
    _check_numbers(rank, alpha)
    base = next((each for family, each in _BASES.items() if family == base_model), None)
    found = {
        "modelspec.title": title,
        "modelspec.author": author,
        "modelspec.description": description,
        "modelspec.license": license,
        "modelspec.trigger_phrase": ", ".join(words) or None,
        "modelspec.architecture": None if base is None else base.architecture,
        "ss_base_model_version": None if base is None else base.version,
        "ss_sd_model_name": base_model if base is None else None,
        "ss_network_dim": None if rank is None else str(rank),
        "ss_network_alpha": None if alpha is None else str(alpha),
    }
    return {name: text for name, text in found.items() if text is not None}


def _check_numbers(rank: int | str | None, alpha: float | str | None) -> None:
    for name, value, kinds in (("rank", rank, (int, str)), ("alpha", alpha, (int, float, str))):
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            what = "a whole number" if name == "rank" else "a number"
            raise TypeError(f"{name} must be {what} or a text, got {type(value).__name__}")
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if isinstance(alpha, (int, float)) and not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")


def without_stale(metadata: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is true of the file that it was read from alone."""
    return {key: text for key, text in metadata.items() if key not in _STALE}


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Give what a file is to say, a dictionary of its own.

    Raises:
        TypeError: If it does not map texts to texts.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must map texts to texts, got {type(metadata).__name__}")
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"metadata must map texts to texts, got {text!r} for {key!r}")
    return dict(metadata)
