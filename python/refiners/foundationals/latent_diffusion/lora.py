"""LoRAs of a diffusion model: added, scaled and removed by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import Lora, LoraAdapter, Region, auto_attach_loras
from refiners.fluxion.adapters.lora.checks import check_name, check_scale
from refiners.fluxion.adapters.lora.update import Scale
from refiners.foundationals.latent_diffusion.checks import check_scopes, warn_of_unknown
from refiners.foundationals.latent_diffusion.lora_merge import MergeableLoras

if TYPE_CHECKING:
    from refiners.conversion.lora import LoraPlan, Part, Scope


class SDLoraManager(MergeableLoras):
    """Add any number of LoRAs to a diffusion model, each with a name and a scale.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685). Files of kohya-ss/sd-scripts, LyCORIS, PEFT,
    diffusers, OneTrainer and ours are understood; see `refiners.conversion.lora.keys`. An update belongs to the layer
    that it is named after.

    Args:
        target: The model.
    """

    # --- add ----------------------------------------------------------------------------------------------------------

    def load(
        self,
        name: str,
        path: Path | str,
        /,
        scale: Scale = 1.0,
        *,
        unet_inclusions: list[str] | None = None,
        unet_exclusions: list[str] | None = None,
        text_encoder_inclusions: list[str] | None = None,
        text_encoder_exclusions: list[str] | None = None,
        partial: bool = False,
        by_order: bool = False,
    ) -> LoraPlan:
        """Add the LoRA in a file, of which one tensor at a time is read; see `add_loras`.

        Args:
            name: How to call it.
            path: The file, or a folder of PEFT.
            scale: The multiplier (dimensionless), beside that of the file.
            unet_inclusions: See `add_loras`, as for the following.
            unet_exclusions: See there.
            text_encoder_inclusions: See there.
            text_encoder_exclusions: See there.
            partial: See there.
            by_order: See there.

        Raises:
            FileNotFoundError: If there is no such file.
            AssertionError: If the name is taken.
            TypeError: If an argument is of a wrong type.
            ValueError: If something in the file cannot be attached, or nothing would be; see there.
        """
        return self._add(
            name,
            Path(path),
            scale,
            (unet_inclusions, unet_exclusions, None),
            (text_encoder_inclusions, text_encoder_exclusions),
            partial,
            by_order,
        )

    def add_loras(
        self,
        name: str,
        /,
        tensors: dict[str, Tensor],
        scale: Scale = 1.0,
        unet_inclusions: list[str] | None = None,
        unet_exclusions: list[str] | None = None,
        unet_preprocess: dict[str, str] | None = None,
        text_encoder_inclusions: list[str] | None = None,
        text_encoder_exclusions: list[str] | None = None,
        *,
        partial: bool = False,
        by_order: bool = False,
    ) -> LoraPlan:
        """Add the updates of a file, each to the layer that it is named after: all of them, or none.

        The multiplier of the file, alpha / rank, applies beside `scale`; historically it was ignored.

        Args:
            name: How to call it.
            tensors: The tensors of the file, by their keys.
            scale: The multiplier (dimensionless): a number, a tensor with one for each sample, or a `Region`.
            unet_inclusions: If given, only layers of the U-Net with a chain of one of these classes above them; updates
                of other layers are left out.
            unet_exclusions: No layers with a chain of one of these classes above them.
            unet_preprocess: For updates that are attached by order, which it asks for; see `add_loras_to_unet`.
            text_encoder_inclusions: As `unet_inclusions`, for the text encoder.
            text_encoder_exclusions: As `unet_exclusions`, for the text encoder.
            partial: Whether to attach what can be attached, and leave the rest, rather than to fail.
            by_order: Whether to attach the updates of a file of which no name is known by their order and shapes, as
                all of them once were, with a warning: it is wrong where their order is not that of the layers.

        Returns:
            What became of each update.

        Raises:
            AssertionError: If the name is taken.
            TypeError: If an argument is of a wrong type.
            ValueError: If something cannot be attached, with a list of what and why, if nothing would be, or if the
                scale is not finite; the model is as it was. A tensor is read only on the CPU.
        """
        return self._add(
            name,
            tensors,
            scale,
            (unet_inclusions, unet_exclusions, unet_preprocess),
            (text_encoder_inclusions, text_encoder_exclusions),
            partial,
            by_order or unet_preprocess is not None,
        )

    def _add(
        self,
        name: str,
        source: Path | dict[str, Tensor],
        scale: Scale,
        unet: tuple[list[str] | None, list[str] | None, dict[str, str] | None],
        text_encoder: tuple[list[str] | None, list[str] | None],
        partial: bool,
        by_order: bool = False,
    ) -> LoraPlan:
        from refiners.conversion.lora import attach_lora

        check_name(name)
        check_scale(name, scale)
        if not isinstance(source, (Path, Mapping)):
            raise TypeError(f"tensors must be those of a file by their keys, got {type(source).__name__}")
        scopes = self._scopes(unet[:2], text_encoder)
        if name in self.names:
            raise AssertionError(f"LoRA {name} already exists")

        def attach_in_order(loras: dict[str, Lora[Any]]) -> None:
            self._attach_by_order(loras, unet, text_encoder)

        try:
            first = 1.0 if isinstance(scale, Region) else scale  # what has no places is not known before
            asked = attach_in_order if by_order else None
            plan = attach_lora(self.target, name, source, scale=first, scopes=scopes, partial=partial, by_order=asked)
            if isinstance(scale, Region):
                self._set_scales({name: scale}, self._find())
        except BaseException:
            self._remove({name})
            raise
        self._order.append(name)
        return plan

    def _scopes(self, unet: Scope, text_encoder: Scope) -> dict[Part, Scope]:
        """Give where in each network there may be updates; warn of classes that it has no chain of."""
        scopes: dict[Part, Scope] = {"unet": unet, "text_encoder": text_encoder}
        check_scopes(scopes)
        networks: dict[Part, fl.Chain] = {"unet": self.unet, "text_encoder": self.clip_text_encoder}
        for part, network in networks.items():
            if asked := {name for names in scopes[part] for name in names or ()}:
                chains = (*network.get_parents(), network, *network.layers(fl.Chain, recurse=True))
                warn_of_unknown(part, asked, {type(chain).__name__ for chain in chains})
        return scopes

    # --- replace ------------------------------------------------------------------------------------------------------

    def replace(
        self,
        name: str,
        source: Path | str | dict[str, Tensor],
        /,
        scale: Scale | None = None,
        *,
        unet_inclusions: list[str] | None = None,
        unet_exclusions: list[str] | None = None,
        text_encoder_inclusions: list[str] | None = None,
        text_encoder_exclusions: list[str] | None = None,
        partial: bool = False,
    ) -> LoraPlan:
        """Put another LoRA in the place of one, with its name and all that it is multiplied by.

        Where the two have updates of the same layers, ranks and shapes, as those of one recipe of training have, the
        values are written into the parameters that are there: the tree is not touched, no memory is taken, and what
        was prepared for the layers stays. Otherwise the other one is added, and then the one removed.

        Args:
            name: Which.
            source: A file, a folder of PEFT, or the tensors of a file by their keys.
            scale: The multiplier from now on (default: the one it has).
            unet_inclusions: See `add_loras`, as for the following.
            unet_exclusions: See there.
            text_encoder_inclusions: See there.
            text_encoder_exclusions: See there.
            partial: See there.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If an argument is of a wrong type.
            ValueError: If there is none of this name, or it is merged; if something cannot be attached, see there. In
                either case nothing was changed.
        """
        from refiners.conversion.lora import replace_lora

        if not isinstance(source, (str, Path, Mapping)):
            raise TypeError(f"source must be a path or tensors by their keys, got {type(source).__name__}")
        if scale is not None:
            check_scale(name, scale)
        unet, text_encoder = (unet_inclusions, unet_exclusions), (text_encoder_inclusions, text_encoder_exclusions)
        scopes = self._scopes(unet, text_encoder)
        found = self._find()
        self._check_names([name], found)
        if name in {update.name for update in found.merged}:
            raise ValueError(f"LoRA {name!r} is merged: unmerge it first")
        updates = [update for update in found.attached if update.name == name]
        plan = replace_lora(self.target, updates, source, scopes=scopes, partial=partial)
        if plan is None:
            return self._exchange(name, source, scale, (*unet, None), text_encoder, partial)
        if scale is not None:
            self._set_scales({name: scale}, found)
        return plan

    def _exchange(
        self,
        name: str,
        source: Path | str | dict[str, Tensor],
        scale: Scale | None,
        unet: tuple[list[str] | None, list[str] | None, None],
        text_encoder: tuple[list[str] | None, list[str] | None],
        partial: bool,
    ) -> LoraPlan:
        """Add a LoRA, and then remove one, whose name and multipliers it takes over."""
        multiplier: Scale = self.get_scale(name) if scale is None else scale
        factors, schedule = self.get_block_scales(name), self._schedules.by_name.get(name)
        order = self.names
        newcomer = f"{name}, the other one"
        while newcomer in order:
            newcomer += "'"
        tensors = Path(source) if isinstance(source, str) else source
        plan = self._add(newcomer, tensors, multiplier, unet, text_encoder, partial)
        blocks = self.get_block_scales(newcomer)
        self.set_block_scales(newcomer, {block: factors.get(block, 1.0) for block in blocks})
        self._remove({name})
        for update in self._find().attached:
            if update.name == newcomer:
                update.name = name
        self._order = order
        self._schedules.set(name, schedule)
        return plan


__all__ = ["Lora", "LoraAdapter", "Region", "SDLoraManager", "auto_attach_loras"]
