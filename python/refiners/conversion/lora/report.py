"""Say what a LoRA file holds, before anything is touched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from refiners.conversion.checkpoint import Checkpoint, StateDict, TensorSource
from refiners.conversion.diffusion import FAMILY_TITLES, Family
from refiners.conversion.lora.keys import split_keys
from refiners.conversion.lora.names import LayerNames, Network
from refiners.conversion.lora.no_lora import check_is_no_pipeline
from refiners.conversion.lora.plan import LoraPlan, Update, plan_lora
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.targets import PUBLISHED, targets_in, targets_of
from refiners.fluxion.printable import printable
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

_STYLES = {"kohya": "kohya", "peft": "PEFT", "diffusers": "old diffusers", "refiners": "refiners"}
_TEXT_DIMS: Mapping[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_FROM_TEXT = re.compile(r"Residual_2\.Attention\.Distribute\.Linear_[23]$")  # keys and values of the prompt
_BLOCKS = (  # of a path, and what users call such a layer
    (r"Residual_1\.SelfAttention\.", "self-attention"),
    (r"Residual_2\.Attention\.", "cross-attention"),
    (r"Residual_3\.|\.FeedForward\.", "feed-forward"),
    (r"CrossAttention\.Chain_[13]\.", "projection around attention"),
    (r"\.Downsample\.|\.Upsample\.", "down- and upsampling"),
    (r"\.RangeAdapter2d\.Chain\.|^TimestepEncoder\.", "timestep"),
    (r"\.ResidualBlock", "residual block"),
)
_SAID = ("ss_base_model_version", "modelspec.architecture", "modelspec.title", "modelspec.trigger_phrase")


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA file holds.

    Attributes:
        label: The file.
        format: Who writes such files, and whose names they have.
        family: The model that it is for, told by names and shapes; `None` where they fit several, or none.
        is_checked: Whether it was compared with the shapes of a model, and not with names alone.
        plan: What each tensor is for, and what becomes of each update.
        said: What the file says of itself.
    """

    label: str
    format: str
    family: Family | None
    is_checked: bool
    plan: LoraPlan = field(repr=False)
    said: Mapping[str, str]

    def table(self) -> list[tuple[str, str, int | None, float | None, int]]:
        """Count the updates that fit of each network, kind, rank and alpha."""
        counts = Counter((each.part or "", each.kind, each.rank, each.alpha) for each in self.plan.of_status("fits"))
        return [(*group, count) for group, count in counts.items()]

    def layers(self) -> dict[str, int]:
        """Count the updates that fit by what users call such layers, such as `"unet, cross-attention"`."""
        return dict(Counter(f"{each.part}, {_block(each.path)}" for each in self.plan.of_status("fits")))

    def to_json(self) -> dict[str, Any]:
        """Give everything as values that JSON can hold."""
        names = ("name", "kind", "part", "path", "library", "rank", "alpha", "scale", "status", "reason")
        return {
            "label": self.label,
            "kind": "lora",
            "format": self.format,
            "family": self.family,
            "is_checked": self.is_checked,
            "is_whole": self.plan.is_whole,
            "table": [dict(zip(("part", "kind", "rank", "alpha", "count"), row)) for row in self.table()],
            "layers": self.layers(),
            "updates": [{name: getattr(each, name) for name in names} for each in self.plan.updates],
            "left_over": list(self.plan.left_over),
            "said": dict(self.said),
        }

    def __str__(self) -> str:
        family = f"{FAMILY_TITLES[self.family]} ({self.family})" if self.family else "a model that is not known"
        lines = [f"{self.label}: {self._kinds()} for {family}, written by {self.format}"]
        if rows := self.table():
            width = max(8, *(len(kind) + 2 for _, kind, *_ in rows))
            lines.append(f"  {'network':<14}{'kind':<{width}}{'rank':>6}{'alpha':>8}{'layers':>8}")
            for part, kind, *numbers, count in rows:
                rank, alpha = ("-" if number is None else f"{number:g}" for number in numbers)
                lines.append(f"  {part:<14}{kind:<{width}}{rank:>6}{alpha:>8}{count:>8}")
        lines += [f"  {count:>6}  {where}" for where, count in self.layers().items()]
        if out := self.plan.of_status("left out"):
            lines.append(f"left out, {len(out)}: {out[0].reason or 'as its layer'}, such as {printable(out[0].name)}")
        if self.plan.is_whole:
            lines.append(
                "everything fits" + ("" if self.is_checked else " by its name; shapes were not compared with a model")
            )
        else:
            lines += ["cannot be attached:", self.plan.problems()]
        lines += [f"says {name}: {printable(text)}" for name, text in self.said.items()]
        return "\n".join(lines)

    def _kinds(self) -> str:
        return ", ".join(dict.fromkeys(each.kind for each in self.plan.updates))


def inspect_lora(
    file: Path | str | Mapping[str, Tensor],
    model: LatentDiffusionModel | None = None,
    *,
    checkpoint: Path | str | None = None,
) -> LoraReport:
    """Say what a LoRA file holds, which layers it is for, and what of it cannot be attached, and why.

    Only the header of the file is read, and the multipliers in it. `str` of the report is a table.

    Args:
        file: The file, a folder of PEFT, or tensors by their keys.
        model: The model that it is for (default: a published one, by its names alone).
        checkpoint: A checkpoint of that model, of which only headers are read, in place of the model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no LoRA, nor another known update of layers; if model and checkpoint are given both.
    """
    if model is not None and checkpoint is not None:
        raise ValueError("model and checkpoint say the same: give one of them")
    if isinstance(file, Mapping):
        return _report(StateDict(file), LoraSettings(), {}, model, checkpoint)
    check_is_no_pipeline(file)
    with Checkpoint(file) as opened:
        return _report(opened, LoraSettings.of_file(opened.path, opened.metadata), opened.metadata, model, checkpoint)


def _report(
    source: TensorSource,
    settings: LoraSettings,
    metadata: Mapping[str, str],
    model: LatentDiffusionModel | None,
    checkpoint: Path | str | None,
) -> LoraReport:
    if model is not None:
        targets = targets_of(model)
        plan = plan_lora(source, targets.networks, settings, targets.layer_problem)
        family = _family_of(targets.networks["unet"])
    elif checkpoint is not None:
        family, networks = targets_in(checkpoint)
        plan = plan_lora(source, networks, settings)
    else:
        family, plan = guess(source, settings)
    said = {name: metadata[name] for name in _SAID if metadata.get(name)}
    return LoraReport(source.label, _format(plan), family, model is not None or checkpoint is not None, plan, said)


def _family_of(unet: Network) -> Family | None:
    return {"unet_sd1": "sd1", "unet_sdxl": "sdxl"}.get(unet.component or "")  # pyright: ignore[reportReturnType]


def guess(source: TensorSource, settings: LoraSettings) -> tuple[Family | None, LoraPlan]:
    """Compare with the names of the published models; where both have them, sizes tell."""
    split = split_keys(source.infos)
    named: dict[Family, int] = {}
    for family, networks in PUBLISHED.items():
        names = LayerNames(networks)
        roots = {root for each in names.roots.values() for root in each}  # with which our own names begin
        named[family] = sum(entry.name.partition(".")[0] in roots or bool(names.find(entry.name)) for entry in split[0])
    best = max(named, key=lambda family: named[family])
    plan = plan_lora(source, PUBLISHED[best], settings, split=split)
    dims: set[Family | None] = {
        _TEXT_DIMS.get(source.infos[each.keys["down"]].shape[1])
        for each in plan.updates
        if _FROM_TEXT.search(each.path) and "down" in each.keys and len(source.infos[each.keys["down"]].shape) > 1
    }
    by_size = dims.pop() if len(dims) == 1 else None
    if len(set(named.values())) > 1:
        return ("sd2" if best == "sd1" and by_size == "sd2" else best), plan
    if by_size is not None and by_size in PUBLISHED and by_size != best:
        plan = plan_lora(source, PUBLISHED[by_size], settings, split=split)
    return by_size if named[best] else None, plan


def _format(plan: LoraPlan) -> str:
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
    libraries = " and ".join(dict.fromkeys(each.library for each in plan.updates if each.library))
    return f"{writer} with names of {libraries}" if libraries else writer


def _block(path: str) -> str:
    return next((title for pattern, title in _BLOCKS if re.search(pattern, path)), "other")


__all__ = ["LoraReport", "Update", "inspect_lora"]
