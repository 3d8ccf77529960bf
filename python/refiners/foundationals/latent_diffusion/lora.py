"""LoRAs of a diffusion model: added, scaled and removed by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import LayerUpdate, Lora, LoraAdapter, Region, auto_attach_loras
from refiners.fluxion.adapters.lora.places import find_places
from refiners.fluxion.adapters.lora.update import Scale
from refiners.fluxion.bulk import collections_paused
from refiners.foundationals.latent_diffusion.checks import check_scale, check_scopes
from refiners.foundationals.latent_diffusion.lora_scales import WeighedLoras

if TYPE_CHECKING:
    from refiners.conversion.lora import LoraFormat, LoraPlan, Part, Scope


class SDLoraManager(WeighedLoras):
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
    ) -> LoraPlan:
        """Add the updates of a file, each to the layer that it is named after: all of them, or none.

        The multiplier of the file, alpha / rank, applies beside `scale`; historically it was ignored. Updates whose
        names are not known are attached by order and shape, as all of them once were, and a warning says so; see
        `add_loras_to_unet`.

        Args:
            name: How to call it.
            tensors: The tensors of the file, by their keys.
            scale: The multiplier (dimensionless): a number, a tensor with one for each sample, or a `Region`.
            unet_inclusions: If given, only layers of the U-Net with a chain of one of these classes above them; updates
                of other layers are left out.
            unet_exclusions: No layers with a chain of one of these classes above them.
            unet_preprocess: For unknown names; see `add_loras_to_unet`.
            text_encoder_inclusions: As `unet_inclusions`, for the text encoder.
            text_encoder_exclusions: As `unet_exclusions`, for the text encoder.
            partial: Whether to attach what can be attached, and leave the rest, rather than to fail.

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
        )

    def _add(
        self,
        name: str,
        source: Path | dict[str, Tensor],
        scale: Scale,
        unet: tuple[list[str] | None, list[str] | None, dict[str, str] | None],
        text_encoder: tuple[list[str] | None, list[str] | None],
        partial: bool,
    ) -> LoraPlan:
        from refiners.conversion.lora import attach_lora

        check_scale(name, scale)
        scopes: dict[Part, Scope] = {"unet": unet[:2], "text_encoder": text_encoder}
        check_scopes(scopes)
        if name in self.names:
            raise AssertionError(f"LoRA {name} already exists")

        def by_order(loras: dict[str, Lora[Any]]) -> None:
            self._attach_by_order(loras, unet, text_encoder)

        try:
            first = 1.0 if isinstance(scale, Region) else scale  # what has no places is not known before
            plan = attach_lora(
                self.target, name, source, scale=first, scopes=scopes, partial=partial, by_order=by_order
            )
            if isinstance(scale, Region):
                self._set_scales({name: scale}, self._find())
        except BaseException:
            self._remove({name})
            raise
        self._order.append(name)
        return plan

    # --- remove -------------------------------------------------------------------------------------------------------

    def remove_loras(self, *names: str) -> None:
        """Remove LoRAs; a layer without any other is what it was before.

        Raises:
            ValueError: If there is none of a name; nothing was removed.
        """
        self._check_names(names)
        self._merged.unmerge(names)
        self._remove(set(names))

    def remove_all(self) -> None:
        """Remove all LoRAs, also those that were not added by this manager."""
        self._merged.unmerge(self._merged.names)
        for name in list(self._schedules.by_name):
            self._schedules.set(name, None)
        with collections_paused():
            for adapter in self.lora_adapters:
                adapter.eject()
        self._order.clear()

    def _remove(self, names: set[str]) -> None:
        for name in names:
            self._schedules.set(name, None)
        with collections_paused():
            for adapter in self.lora_adapters:
                own = {child.name for child in adapter if isinstance(child, LayerUpdate)}
                if own and own <= names:
                    adapter.eject()
                    continue
                for name in own & names:
                    adapter.remove_lora(name)
        self._order = [name for name in self._order if name not in names]

    # --- save ---------------------------------------------------------------------------------------------------------

    def save(
        self,
        name: str,
        path: Path | str,
        /,
        *,
        format: LoraFormat = "kohya",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a LoRA to a file; see `refiners.conversion.lora.save_lora`.

        Args:
            name: Which.
            path: The file to write, of safetensors.
            format: Who is to read it: `"kohya"`, as most programs do, or `"diffusers"`.
            metadata: What to say in the file.

        Raises:
            ValueError: If there is none of this name, it is merged, or it cannot be written; nothing is.
        """
        from refiners.conversion.lora import save_lora

        self._check_names([name])
        if name in self.merged_names:
            raise ValueError(f"LoRA {name!r} is merged: unmerge it first")
        save_lora(self.target, name, path, format=format, metadata=metadata)

    # --- merge --------------------------------------------------------------------------------------------------------

    def merge(self, *names: str) -> None:
        """Put LoRAs into the weights of their layers, where they cost nothing; see `MergedLoras`.

        They keep their names and multipliers: a new multiplier changes the weights at once. The weights as they were
        are kept beside, on the device of the model.

        Args:
            names: Which (default: all).

        Raises:
            ValueError: If there is none of a name, or one cannot be merged; nothing was changed.
        """
        self._check_names(names)
        merged = self.merged_names
        wanted = [name for name in names or self.names if name not in merged]
        if scheduled := [name for name in wanted if name in self._schedules.by_name]:
            raise ValueError(f"LoRA {scheduled[0]!r} has another multiplier at each step: it cannot be merged")
        self._merged.merge(wanted)

    def unmerge(self, *names: str) -> None:
        """Take LoRAs out of the weights, which are then bit for bit what they were, and attach them again.

        Args:
            names: Which (default: all).

        Raises:
            ValueError: If there is none of a name; nothing was changed.
        """
        self._check_names(names)
        self._merged.unmerge(names or self._merged.names)

    # --- weights ------------------------------------------------------------------------------------------------------

    def get_lora_weights(self, name: str, /) -> dict[str, Tensor]:
        """Give the weights of a LoRA, multiplied by alpha / rank of its file; `add_loras` takes them.

        Keys are `<path of the chain that holds the layer>.<number>.<class of the layer>.down.weight`, and `.up.weight`,
        where the adapted layers of a chain are numbered from 1.

        Raises:
            ValueError: If there is none of this name, it is merged, or it has updates that are no pairs of matrices.
        """
        self._check_names([name])
        if name in self.merged_names:
            raise ValueError(f"LoRA {name!r} is merged: unmerge it first")
        weights: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for network in (self.unet, self.clip_text_encoder):
            paths = {id(place.layer): path for path, place in find_places(network).items()}
            for adapter in network.layers(LoraAdapter, recurse=True):
                lora = next((each for each in _loras_in(adapter) if each.name == name), None)
                if lora is None:
                    continue
                if not isinstance(lora, Lora):
                    raise ValueError(f"LoRA {name!r} has updates that are not pairs of matrices: {lora.change}")
                own = f"{type(network).__name__}.{paths[id(adapter.target)]}" if id(adapter.target) in paths else None
                parent = (own or adapter.get_path()).rpartition(".")[0]
                counts[parent] = counts.get(parent, 0) + 1
                key = f"{parent}.{counts[parent]}.{type(adapter.target).__name__}"
                down, up = lora.scaled_factors()
                weights |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        return weights


def _loras_in(chain: fl.Chain) -> Iterator[LayerUpdate]:
    return chain.layers(LayerUpdate, recurse=True)


__all__ = ["Lora", "LoraAdapter", "Region", "SDLoraManager", "auto_attach_loras"]
