"""Say what a file or folder of weights holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import dtype as DType

from refiners.conversion.detection import Found
from refiners.conversion.diffusion import (
    FAMILY_TITLES,
    Family,
    InferenceConfig,
    OpenedSources,
    family_of,
    inference_config,
)
from refiners.conversion.formats import Component

# What files of a whole pipeline hold besides its models: averages of training, tables of the noise schedule, counters.
_KNOWN_EXTRAS = re.compile(
    r"^(model_ema|loss|denoiser|embedding_manager|cond_stage_model|conditioner)\.|position_ids$|logit_scale$"
    r"|^(betas|logvar|alphas_cumprod\w*|sqrt_\w*alphas_cumprod\w*|log_one_minus_alphas_cumprod|posterior_\w+)$"
    r"|^(lvlb_weights|scale_factor|ddim_\w+|global_step|v_pred|ztsnr|edm_\w+(\.sigma_(max|min))?)$"
)
_KINDS = {"file": "file", "folder": "folder of a model", "pipeline": "folder of a pipeline"}
_PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "the sample", "edm": "what EDM does"}


@dataclass(frozen=True)
class ComponentDescription:
    """A model in a file or folder.

    Attributes:
        component: Its kind.
        format: Who names its tensors, and what stands before the names.
        dtype: The dtype of most of its numbers.
        parameters: How many there are.
        layout: Its structure: a `UNetLayout`, `AutoencoderLayout`, `CLIPLayout`, ...
        missing: The keys that a model of this structure should have.
        unknown: The keys at the same place that belong to no layer of it.
        unfit: The keys whose tensors cannot be those of the layer, and what they are.
    """

    component: Component
    format: str
    dtype: DType
    parameters: int
    layout: Any
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    unfit: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, unknown or unfit: it can be loaded."""
        return not self.missing and not self.unknown and not self.unfit

    @classmethod
    def of(cls, found: Found) -> ComponentDescription:
        """Describe what was found."""
        lists = (tuple(each) for each in (found.missing, found.unknown, found.unfit))
        return cls(found.component, str(found.format), found.dtype, found.parameters, found.layout, *lists)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [f"{self.component}: names of {self.format}, {self.parameters / 1e6:.1f} M parameters in {dtype}"]
        for title, keys in (("missing", self.missing), ("unknown", self.unknown), ("unfit", self.unfit)):
            if keys:
                lines.append(f"    {len(keys)} {title}: {_first(keys)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Description:
    """What a file or folder of weights holds.

    Attributes:
        path: Where it is.
        kind: Whether it is one file, a folder of one model, or a folder of a pipeline.
        family: Which Stable Diffusion its U-Net is of, if it has one.
        components: Its models.
        config: What else is known of its U-Net, if it has one.
        unknown: The keys that belong to no model and are no usual companions of one.
    """

    path: Path
    kind: Literal["file", "folder", "pipeline"]
    family: Family | None
    components: tuple[ComponentDescription, ...]
    config: InferenceConfig | None
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give what it says as values that JSON can hold."""
        components = [
            {
                "component": each.component,
                "format": each.format,
                "dtype": str(each.dtype).removeprefix("torch."),
                "parameters": each.parameters,
                "missing": list(each.missing),
                "unknown": list(each.unknown),
                "unfit": list(each.unfit),
            }
            for each in self.components
        ]
        return {
            "path": str(self.path),
            "kind": self.kind,
            "family": self.family,
            "prediction_type": None if self.config is None else self.config.prediction_type,
            "components": components,
            "unknown": list(self.unknown),
        }

    def __str__(self) -> str:
        family = f"{FAMILY_TITLES[self.family]} ({self.family})" if self.family else "no Stable Diffusion"
        lines = [f"{self.path}: {_KINDS[self.kind]}, {family}"]
        if self.config is not None:
            prediction = self.config.prediction_type
            known = None if prediction is None else f"{_PREDICTIONS.get(prediction, 'something else')} ({prediction})"
            inpainting = ", inpainting" if self.config.is_inpainting else ""
            lines[0] += f"{inpainting}, predicts {known or 'what is not said'}"
        lines += [f"  {component}" for component in self.components]
        if self.unknown:
            lines.append(f"  {len(self.unknown)} keys of no model that is known: {_first(self.unknown)}")
        return "\n".join(lines)


def _first(keys: tuple[str, ...]) -> str:
    return ", ".join([*keys[:3], *(["..."] if len(keys) > 3 else [])])


def describe(path: Path | str, variant: str | None = None) -> Description:
    """Say what a file or folder of weights holds, without reading a tensor. It may be anything; it need not be whole.

    Args:
        path: A file, a folder of one model, or a folder of a pipeline.
        variant: Which of the variants of a folder is meant; see `Checkpoint`.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there are no tensors in it that can be read.
    """
    opened = OpenedSources(Path(path), variant)
    try:
        found = opened.find()
        by_component: dict[Component, Found] = {each.component: each for each in found}
        unet = by_component.get("unet_sd1") or by_component.get("unet_sdxl")
        family = family_of(by_component)
        used = {recipe.key for each in found for recipe in each.recipes.values()}
        used |= {key for each in found for key in each.unknown}
        used |= {line.partition(": ")[0] for each in found for line in each.unfit}
        keys = [key for source in opened.sources for key in source.infos]
        return Description(
            path=opened.path,
            kind="pipeline" if opened.is_pipeline else "folder" if opened.path.is_dir() else "file",
            family=family,
            components=tuple(ComponentDescription.of(each) for each in found),
            config=None if unet is None or family is None else inference_config(opened, unet, family),
            unknown=tuple(key for key in keys if key not in used and not _is_companion(key, found)),
        )
    finally:
        opened.close()


def _is_companion(key: str, found: list[Found]) -> bool:
    if _KNOWN_EXTRAS.search(key):
        return True
    return any(
        key.startswith(each.format.prefix) and each.format.is_extra(key.removeprefix(each.format.prefix), each.layout)
        for each in found
        if each.component != "double_text_encoder"  # everything else is an extra to it
    ) or any(
        name.key(kind) == key
        for each in found
        for name in each.format.unused(each.layout)
        for kind in ("weight", "bias")
    )
