"""The blocks of a diffusion model, by which the updates of a LoRA are weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.search import find_updates
from refiners.foundationals.latent_diffusion.cross_attention import Distribute
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

_NUMBERED = {"DownBlocks": "down", "UpBlocks": "up"}


def blocks_of(model: LatentDiffusionModel) -> dict[str, list[fl.Module]]:
    """Give the blocks of a model by their names, the text encoder first.

    They are `text_encoder`, `down.0`, `down.1` and so on, `middle`, `up.0` and so on, as they are numbered in the
    published checkpoints (`input_blocks.0`, `middle_block`, `output_blocks.0`), and `other`, the rest of the U-Net.
    """
    blocks: dict[str, list[fl.Module]] = {"text_encoder": [model.clip_text_encoder]}
    others: list[fl.Module] = []
    for child in model.unet:
        kind = type(child).__name__
        if isinstance(child, fl.Chain) and kind in _NUMBERED:
            blocks |= {f"{_NUMBERED[kind]}.{index}": [block] for index, block in enumerate(child)}
        elif "MiddleBlock" in (kind, *(type(block).__name__ for block in child.children())):
            blocks["middle"] = [child]
        else:
            others.append(child)
    return blocks | {"other": others}


def factors_of(model: LatentDiffusionModel, wanted: Mapping[str, float]) -> dict[str, float]:
    """Give the factor of each block, from those of blocks and of all whose names begin alike, such as `down`.

    Raises:
        TypeError: If the factors are no numbers by name.
        ValueError: If there is no such block, or a factor is not finite.
    """
    blocks = blocks_of(model)
    if not isinstance(wanted, Mapping):
        raise TypeError(f"scales must be numbers by the names of blocks, got {type(wanted).__name__}")
    for name, factor in wanted.items():
        if name not in blocks and not any(block.startswith(f"{name}.") for block in blocks):
            raise ValueError(f"there is no block {name!r}: there are {', '.join(blocks)}")
        if isinstance(factor, bool) or not isinstance(factor, Real):
            raise TypeError(f"the scale of the block {name!r} must be a number, got {type(factor).__name__}")
        if not math.isfinite(factor):
            raise ValueError(f"the scale of the block {name!r} must be finite, got {factor}")
    return {block: float(wanted.get(block, wanted.get(block.partition(".")[0], 1.0))) for block in blocks}


def prompt_updates(model: LatentDiffusionModel) -> set[int]:
    """Give the `id` of each attached update of a layer that sees the prompt, and no place of the image."""
    roots = [model.clip_text_encoder]
    found = {id(update) for update in find_updates(roots).attached}
    for projections in model.unet.layers(Distribute, recurse=True):
        _, *of_prompt = projections
        found |= {id(update) for update in find_updates(of_prompt).attached}
    return found
