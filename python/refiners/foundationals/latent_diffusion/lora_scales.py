"""The LoRAs of a diffusion model by their names, and what they are multiplied by: in all, by block and by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from refiners.fluxion.adapters.lora import LayerUpdate, LoraAdapter, MergedLoras, Region
from refiners.fluxion.adapters.lora.search import Found, find_updates
from refiners.fluxion.adapters.lora.update import Scale
from refiners.foundationals.latent_diffusion.checks import check_scale
from refiners.foundationals.latent_diffusion.lora_blocks import blocks_of, factors_of, prompt_updates
from refiners.foundationals.latent_diffusion.lora_by_order import LorasByOrder
from refiners.foundationals.latent_diffusion.lora_schedule import LoraSchedules, Schedule
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel


class WeighedLoras(LorasByOrder):
    """Find the LoRAs of a diffusion model by their names, and multiply them.

    Args:
        target: The model.

    Raises:
        TypeError: If it is another kind of object.
    """

    def __init__(self, target: LatentDiffusionModel) -> None:
        if not isinstance(target, LatentDiffusionModel):
            raise TypeError(f"target must be a LatentDiffusionModel, got {type(target).__name__}")
        super().__init__(target)
        self._order: list[str] = []  # the names, as they were added
        self._merged = MergedLoras(self.unet, self.clip_text_encoder)
        self._schedules = LoraSchedules.of(target)

    @property
    def lora_adapters(self) -> list[LoraAdapter]:
        """The adapters that hold LoRAs, those of the U-Net first."""
        networks = (self.unet, self.clip_text_encoder)
        adapters = {id(each): each for network in networks for each in network.layers(LoraAdapter, recurse=True)}
        parents = (update.parent for update in self._find().attached)  # behind adapters that do without them, too
        adapters |= {id(each): each for each in parents if isinstance(each, LoraAdapter)}
        return list(adapters.values())

    @property
    def loras(self) -> list[LayerUpdate]:
        """The updates of layers, those of the U-Net first, and then those that are merged."""
        found = self._find()
        return [*found.attached, *found.merged]

    @property
    def names(self) -> list[str]:
        """The names of the LoRAs, in the order in which they were added."""
        return self._names(self._find())

    @property
    def merged_names(self) -> list[str]:
        """The names of the LoRAs that are merged, in the order of `names`."""
        found = self._find()
        merged = {update.name for update in found.merged}
        return [name for name in self._names(found) if name in merged]

    def _find(self) -> Found:
        return find_updates((self.unet, self.clip_text_encoder))

    def _names(self, found: Found) -> list[str]:
        names = dict.fromkeys(update.name for update in (*found.attached, *found.merged))
        return [name for name in dict.fromkeys([*self._order, *names]) if name in names]

    @property
    def scales(self) -> dict[str, Any]:
        """The multipliers of the LoRAs by their names."""
        return {name: self.get_scale(name) for name in self.names}

    def get_loras_by_name(self, name: str, /) -> list[LayerUpdate]:
        """List the updates of a LoRA."""
        return [lora for lora in self.loras if lora.name == name]

    def get_scale(self, name: str, /) -> Any:
        """Give the multiplier of a LoRA.

        Raises:
            ValueError: If there is none of this name.
            AssertionError: If the multipliers of its updates differ.
        """
        loras = self.get_loras_by_name(name)
        if not loras:
            self._check_names([name])
        first, *others = [lora.scale for lora in loras]
        if not all(_is_same(first, other) for other in others):
            raise AssertionError(f"the updates of LoRA {name} have different scales")
        return first

    def set_scale(self, name: str, scale: Scale, /) -> None:
        """Change the multiplier of a LoRA; see `update_scales`."""
        self.update_scales({name: scale})

    def update_scales(self, scales: Mapping[str, Scale], /) -> None:
        """Change the multipliers of LoRAs.

        Args:
            scales: The multipliers by name: numbers, tensors with one for each sample, or a `Region`, whose `elsewhere`
                is for the layers that see the prompt and not the image.

        Raises:
            AssertionError: If a name is unknown; nothing was changed.
            TypeError: If a multiplier is none of these; nothing was changed.
            ValueError: If one is not finite, or that of a merged LoRA is not the same for all; nothing was changed. A
                tensor is read only on the CPU.
        """
        for name, scale in scales.items():
            check_scale(name, scale)
        found = self._find()
        if unknown := self._unknown(scales, found):
            raise AssertionError(f"Scales keys must be a subset of the names: {unknown}")
        self._set_scales(scales, found)

    def _set_scales(self, scales: Mapping[str, Scale], found: Found) -> None:
        if found.layers:
            self._merged.set_scales(scales)
        by_place = any(isinstance(scale, Region) for scale in scales.values())
        of_prompt = prompt_updates(self.target) if by_place else set[int]()
        for update in found.attached:
            if update.name in scales:
                update.has_places = id(update) not in of_prompt
                update.scale = scales[update.name]

    # --- by block, and by step ----------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[str]:
        """The names of the blocks of the model; see `set_block_scales`."""
        return list(blocks_of(self.target))

    def set_block_scales(self, name: str, scales: Mapping[str, float], /) -> None:
        """Weigh the updates of a LoRA by the blocks of the model that they are in, beside its own multiplier.

        The blocks are `text_encoder`, `down.0`, `down.1` and so on, `middle`, `up.0` and so on, numbered like
        `input_blocks` and `output_blocks` of the published checkpoints, and `other`. `down` and `up` stand for all
        of theirs that have no number of their own.

        Args:
            name: The LoRA.
            scales: The multipliers (dimensionless) by the names of blocks; 1 for those that are not named.

        Raises:
            TypeError: If they are no numbers by names; nothing was changed.
            ValueError: If there is no such LoRA or block, or a number is not finite; nothing was changed.
        """
        self._check_names([name])
        self._schedules.restore()
        factors = factors_of(self.target, scales)
        found = {block: find_updates(roots) for block, roots in blocks_of(self.target).items()}
        by_update = {
            update: factors[block]
            for block, updates in found.items()
            for update in (*updates.attached, *updates.merged)
            if update.name == name
        }
        self._merged.set_factors(by_update)
        for update, factor in by_update.items():
            update.factor = factor

    def get_block_scales(self, name: str, /) -> dict[str, float]:
        """Give the multipliers of the blocks that have updates of a LoRA.

        Raises:
            ValueError: If there is none of this name.
        """
        self._check_names([name])
        self._schedules.restore()
        factors: dict[str, float] = {}
        for block, roots in blocks_of(self.target).items():
            found = find_updates(roots)
            of_block = (each for each in (*found.attached, *found.merged) if each.name == name)
            if update := next(of_block, None):
                factors[block] = update.factor
        return factors

    def set_schedule(self, name: str, schedule: Schedule | None, /) -> None:
        """Multiply a LoRA by a number that changes from step to step, beside its multiplier.

        Args:
            name: The LoRA.
            schedule: Gives the number for how far the generation is, from 0 at the first step from noise to 1 at the
                last. It is called before each step of the model, and applies while the model takes it; `None` for 1.

        Raises:
            TypeError: If it cannot be called; when a step is taken, if it gives no number.
            ValueError: If there is none of this name, or it is merged; when a step is taken, if it gives a number that
                is not finite.
        """
        self._check_names([name])
        if schedule is not None and name in self.merged_names:
            raise ValueError(f"LoRA {name!r} is merged: unmerge it first")
        self._schedules.set(name, schedule)

    def _check_names(self, names: Iterable[str], found: Found | None = None) -> None:
        if unknown := self._unknown(names, found):
            raise ValueError(unknown)

    def _unknown(self, names: Iterable[str], found: Found | None = None) -> str | None:
        known = self._names(found or self._find())
        unknown = [name for name in names if name not in known]
        return f"there is no LoRA {unknown[0]!r}: there are {known or 'none'}" if unknown else None


def _is_same(one: Scale, other: Scale) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other or (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other))
    return one == other
