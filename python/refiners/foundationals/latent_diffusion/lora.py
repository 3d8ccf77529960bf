"""LoRAs of a diffusion model: added, scaled and removed by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import LayerUpdate, Lora, LoraAdapter, auto_attach_loras
from refiners.fluxion.adapters.lora.bulk import collections_paused
from refiners.fluxion.adapters.lora.places import find_places
from refiners.foundationals.latent_diffusion.checks import check_scale, check_scopes
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

if TYPE_CHECKING:
    from refiners.conversion.lora import LoraPlan, Part, Scope

_PREPROCESS = {"res": "ResidualBlock", "downsample": "Downsample", "upsample": "Upsample"}
_SCORES = {"q": 1, "k": 2, "v": 3, "in": 3, "out": 4, "out0": 4, "out_0": 4}
_NO_SCORE = 5


class SDLoraManager:
    """Add any number of LoRAs to a diffusion model, each with a name and a scale.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685). Files of kohya-ss/sd-scripts, LyCORIS, PEFT,
    diffusers, OneTrainer and ours are understood; see `refiners.conversion.lora.keys`. An update belongs to the layer
    that it is named after.

    Args:
        target: The model.
    """

    def __init__(self, target: LatentDiffusionModel) -> None:
        if not isinstance(target, LatentDiffusionModel):
            raise TypeError(f"target must be a LatentDiffusionModel, got {type(target).__name__}")
        self.target = target
        self._order: list[str] = []

    @property
    def unet(self) -> fl.Chain:
        """The U-Net of the model."""
        return self.target.unet

    @property
    def clip_text_encoder(self) -> fl.Chain:
        """The text encoder of the model."""
        return self.target.clip_text_encoder

    # --- add ----------------------------------------------------------------------------------------------------------

    def load(
        self,
        name: str,
        path: Path | str,
        /,
        scale: float | Tensor = 1.0,
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
        scale: float | Tensor = 1.0,
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
            scale: The multiplier (dimensionless): a number, or a tensor with one for each sample.
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
        scale: float | Tensor,
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
            plan = attach_lora(
                self.target, name, source, scale=scale, scopes=scopes, partial=partial, by_order=by_order
            )
        except BaseException:
            self._remove({name})
            raise
        self._order.append(name)
        return plan

    def _attach_by_order(
        self,
        loras: dict[str, Lora[Any]],
        unet: tuple[list[str] | None, list[str] | None, dict[str, str] | None],
        text_encoder: tuple[list[str] | None, list[str] | None],
    ) -> None:
        warnings.warn(
            f"no layers are known by the names of {len(loras)} updates, such as {next(iter(loras))}: they are attached"
            " by order and shape, which is wrong where their order is not that of the layers",
            stacklevel=7,
        )
        ordered = {key: loras[key] for key in sorted(loras, key=self.sort_keys)}
        if not any("unet" in key or "text" in key for key in ordered):
            ordered = {f"unet_{key}": lora for key, lora in ordered.items()}
        parts = {part: {key: lora for key, lora in ordered.items() if part in key} for part in ("unet", "text")}
        if lost := [key for key in ordered if not any(key in found for found in parts.values())]:
            raise ValueError(f"these keys name neither the U-Net nor a text encoder: {', '.join(lost[:4])}")
        self.add_loras_to_unet(parts["unet"], *unet)
        self.add_loras_to_text_encoder(
            {key: lora for key, lora in parts["text"].items() if key not in parts["unet"]}, *text_encoder
        )

    def add_loras_to_unet(
        self,
        loras: dict[str, Lora[Any]],
        /,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        preprocess: dict[str, str] | None = None,
        debug_map: list[tuple[str, str]] | None = None,
    ) -> None:
        """Attach updates to the U-Net by order and shape; see `auto_attach_loras`. Names are better: see `add_loras`.

        Args:
            loras: The updates by key, in the order of the tree.
            include: If given, only layers with a chain of one of these classes above them.
            exclude: No layers with a chain of one of these classes above them (default: `TimestepEncoder`).
            preprocess: Classes by parts of keys: updates with such a key go below these classes, and others do not
                (default: `ResidualBlock`, `Downsample` and `Upsample` for "res", "downsample" and "upsample").
            debug_map: Extended with the key and the path of each update.

        Raises:
            ValueError: If an update finds no layer, or a layer of their shapes no update.
        """
        excluded = ["TimestepEncoder"] if exclude is None else exclude
        classes = {
            part: layer
            for part, layer in (_PREPROCESS if preprocess is None else preprocess).items()
            if layer not in excluded and (include is None or layer in include)
        }
        special = {part: {key: lora for key, lora in loras.items() if part in key} for part in classes}
        for part, layer in classes.items():
            auto_attach_loras(special[part], self.unet, include=[layer], exclude=excluded, debug_map=debug_map)
        rest = {key: lora for key, lora in loras.items() if not any(key in found for found in special.values())}
        auto_attach_loras(rest, self.unet, include=include, exclude=[*excluded, *classes.values()], debug_map=debug_map)

    def add_loras_to_text_encoder(
        self,
        loras: dict[str, Lora[Any]],
        /,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        debug_map: list[tuple[str, str]] | None = None,
    ) -> None:
        """Attach updates to the text encoder by order and shape; see `add_loras_to_unet`."""
        auto_attach_loras(loras, self.clip_text_encoder, include=include, exclude=exclude, debug_map=debug_map)

    # --- remove -------------------------------------------------------------------------------------------------------

    def remove_loras(self, *names: str) -> None:
        """Remove LoRAs; a layer without any other is what it was before.

        Raises:
            ValueError: If there is none of a name; nothing was removed.
        """
        self._check_names(names)
        self._remove(set(names))

    def remove_all(self) -> None:
        """Remove all LoRAs, also those that were not added by this manager."""
        with collections_paused():
            for adapter in self.lora_adapters:
                adapter.eject()
        self._order.clear()

    def _remove(self, names: set[str]) -> None:
        with collections_paused():
            for adapter in self.lora_adapters:
                own = {child.name for child in adapter if isinstance(child, LayerUpdate)}
                if own and own <= names:
                    adapter.eject()
                    continue
                for name in own & names:
                    adapter.remove_lora(name)
        self._order = [name for name in self._order if name not in names]

    # --- look up, and scale -------------------------------------------------------------------------------------------

    @property
    def lora_adapters(self) -> list[LoraAdapter]:
        """The adapters that hold LoRAs, those of the U-Net first."""
        networks = (self.unet, self.clip_text_encoder)
        return [adapter for network in networks for adapter in network.layers(LoraAdapter, recurse=True)]

    @property
    def loras(self) -> list[LayerUpdate]:
        """The updates of layers, those of the U-Net first."""
        networks = (self.unet, self.clip_text_encoder)
        return [lora for network in networks for lora in _loras_in(network)]

    @property
    def names(self) -> list[str]:
        """The names of the LoRAs, in the order in which they were added."""
        found = dict.fromkeys(lora.name for lora in self.loras)
        return [name for name in dict.fromkeys([*self._order, *found]) if name in found]

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
        self._check_names([name])
        first, *others = [lora.scale for lora in self.get_loras_by_name(name)]
        if not all(_is_same(first, other) for other in others):
            raise AssertionError(f"the updates of LoRA {name} have different scales")
        return first

    def set_scale(self, name: str, scale: float | Tensor, /) -> None:
        """Change the multiplier of a LoRA; see `update_scales`."""
        self.update_scales({name: scale})

    def update_scales(self, scales: Mapping[str, float | Tensor], /) -> None:
        """Change the multipliers of LoRAs.

        Args:
            scales: The multipliers by name: numbers, or tensors with one for each sample.

        Raises:
            AssertionError: If a name is unknown; nothing was changed.
            TypeError: If a multiplier is neither a number nor a tensor; nothing was changed.
            ValueError: If one is not finite; nothing was changed. A tensor is read only on the CPU.
        """
        for name, scale in scales.items():
            check_scale(name, scale)
        if unknown := self._unknown(scales):
            raise AssertionError(f"Scales keys must be a subset of the names: {unknown}")
        for lora in self.loras:
            if lora.name in scales:
                lora.scale = scales[lora.name]

    def get_lora_weights(self, name: str, /) -> dict[str, Tensor]:
        """Give the weights of a LoRA, multiplied by alpha / rank of its file; `add_loras` takes them.

        Keys are `<path of the chain that holds the layer>.<number>.<class of the layer>.down.weight`, and `.up.weight`,
        where the adapted layers of a chain are numbered from 1.

        Raises:
            ValueError: If there is none of this name, or it has updates that are no pairs of matrices.
        """
        self._check_names([name])
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
                weights |= {f"{key}.down.weight": lora.down.weight, f"{key}.up.weight": lora.up.weight}
        return weights

    def _check_names(self, names: Iterable[str]) -> None:
        if unknown := self._unknown(names):
            raise ValueError(unknown)

    def _unknown(self, names: Iterable[str]) -> str | None:
        known = self.names
        unknown = [name for name in names if name not in known]
        return f"there is no LoRA {unknown[0]!r}: there are {known or 'none'}" if unknown else None

    # --- order of keys ------------------------------------------------------------------------------------------------

    @staticmethod
    def _pad(input: str, /, padding_length: int = 2) -> str:
        """Pad the numbers between underscores with zeros, so that text is sorted as its numbers are."""
        return "_".join(part.zfill(padding_length) if part.isdigit() else part for part in input.split("_"))

    @staticmethod
    def sort_keys(key: str, /) -> tuple[str, int]:
        """Give what keys are sorted by so that they are in the order of the tree, where their names permit."""
        for ending, score in _SCORES.items():
            for suffix in (f"_{ending}", f"_{ending}_lora"):
                if key.endswith(suffix):
                    return SDLoraManager._pad(key.removesuffix(suffix)), score
        return SDLoraManager._pad(key), _NO_SCORE


def _loras_in(chain: fl.Chain) -> Iterator[LayerUpdate]:
    return chain.layers(LayerUpdate, recurse=True)


def _is_same(one: float | Tensor, other: float | Tensor) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


__all__ = ["Lora", "LoraAdapter", "SDLoraManager", "auto_attach_loras"]
