"""Who writes such LoRA files, told by their keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refiners.conversion.lora.keys import Entry
from refiners.conversion.lora.plan import LoraPlan

_STYLES = {"kohya": "kohya", "peft": "PEFT", "diffusers": "old diffusers", "refiners": "refiners"}
_CHAIN = re.compile(r"[A-Z]\w*(?:\.[A-Z]\w*)*")  # keys of chains: names of classes, as a rule


def format_of(plan: LoraPlan, entries: Sequence[Entry], libraries: Sequence[str]) -> str:
    """Say who writes such files, and whose names they have.

    Args:
        plan: What each tensor of a file is for.
        entries: Its keys.
        libraries: Whose names there may be, where the plan has none.
    """
    if is_of_a_chain(entries):
        return "save_loras of refiners"
    names = [each.name for each in plan.updates]
    if any(re.match(r"bundle_emb\.|lora_(unet|te\d?)\.", name) for name in names):
        writer = "OneTrainer"
    elif any(name.startswith("lycoris_") for name in names):
        writer = "LyCORIS"
    elif any(name.startswith(("diffusion_model.", "model.diffusion_model.")) for name in names):
        writer = "ComfyUI or ai-toolkit"
    elif any(name.startswith("base_model.model.") for name in names):
        writer = "PEFT"
    elif "peft" in plan.styles:
        writer = "diffusers"
    else:
        writer = " and ".join(_STYLES[style] for style in sorted(plan.styles) if style in _STYLES) or "unknown"
    named = list(dict.fromkeys(each.library for each in plan.updates if each.library)) or libraries
    return f"{writer} with names of {' and '.join(named)}" if named else writer


def is_of_a_chain(entries: Sequence[Entry]) -> bool:
    """Whether a file has the keys that `save_loras` writes: paths in a chain, which is of no model that is known."""
    return all(each.keys.keys() <= {"down", "up", "alpha"} and _is_path(each) for each in entries)


def _is_path(entry: Entry) -> bool:
    return entry.styles <= {"kohya", "other"} and _CHAIN.fullmatch(entry.name) is not None
