"""LoRAs attached by the order and the shapes of their layers, as all of them once were."""

from __future__ import annotations

import warnings
from typing import Any

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import Lora, auto_attach_loras
from refiners.fluxion.printable import printable
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

_PREPROCESS = {"res": "ResidualBlock", "downsample": "Downsample", "upsample": "Upsample"}
_SCORES = {"q": 1, "k": 2, "v": 3, "in": 3, "out": 4, "out0": 4, "out_0": 4}
_NO_SCORE = 5


class LorasByOrder:
    """Attach updates whose names say nothing to the layers of a diffusion model.

    Args:
        target: The model.
    """

    def __init__(self, target: LatentDiffusionModel) -> None:
        self.target = target

    @property
    def unet(self) -> fl.Chain:
        """The U-Net of the model."""
        return self.target.unet

    @property
    def clip_text_encoder(self) -> fl.Chain:
        """The text encoder of the model."""
        return self.target.clip_text_encoder

    def _attach_by_order(
        self,
        loras: dict[str, Lora[Any]],
        unet: tuple[list[str] | None, list[str] | None, dict[str, str] | None],
        text_encoder: tuple[list[str] | None, list[str] | None],
    ) -> None:
        first = printable(next(iter(loras)))
        warnings.warn(
            f"no layers are known by the names of {len(loras)} updates, such as {first}: they are attached"
            " by order and shape, which is wrong where their order is not that of the layers",
            stacklevel=8,
        )
        ordered = {key: loras[key] for key in sorted(loras, key=self.sort_keys)}
        if not any("unet" in key or "text" in key for key in ordered):
            ordered = {f"unet_{key}": lora for key, lora in ordered.items()}
        parts = {part: {key: lora for key, lora in ordered.items() if part in key} for part in ("unet", "text")}
        if lost := [key for key in ordered if not any(key in found for found in parts.values())]:
            names = ", ".join(map(printable, lost[:4]))
            raise ValueError(f"these keys name neither the U-Net nor a text encoder: {names}")
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
                    return LorasByOrder._pad(key.removesuffix(suffix)), score
        return LorasByOrder._pad(key), _NO_SCORE
