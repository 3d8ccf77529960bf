"""Say what a LoRA file holds, before anything is touched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from refiners.conversion.checkpoint import Checkpoint, StateDict, TensorSource
from refiners.conversion.diffusion import FAMILY_TITLES, Family
from refiners.conversion.lora.family import tell_family
from refiners.conversion.lora.keys import split_keys
from refiners.conversion.lora.names import Network
from refiners.conversion.lora.no_lora import check_is_no_pipeline
from refiners.conversion.lora.plan import LoraPlan, Update, plan_lora
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.targets import targets_in, targets_of
from refiners.conversion.lora.writer import format_of, is_of_a_chain
from refiners.fluxion.printable import printable
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

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
class LoraRow:
    """Updates of a file that are alike.

    Attributes:
        part: Their network; empty if it is not known.
        kind: What users call them.
        rank: Their rank, if they have one.
        alpha: The multiplier of their training, if it is said.
        scale: What the product of their matrices is multiplied by.
        is_rank_stabilized: Whether that is alpha over the root of the rank, and not over the rank.
        count: How many there are.
    """

    part: str
    kind: str
    rank: int | None
    alpha: float | None
    scale: float
    is_rank_stabilized: bool
    count: int

    @property
    def is_plain(self) -> bool:
        """Whether the multiplier is alpha over the rank, or 1 without them."""
        return self.scale == (1 if self.alpha is None or not self.rank else self.alpha / self.rank)


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA file holds.

    Attributes:
        label: The file.
        format: Who writes such files, and whose names they have.
        family: The model that it is for, told by its own names and shapes; `None` where they fit several, or none.
        compared_with: The model or the checkpoint whose shapes it was compared with; `None` if names alone were.
        model_family: Which model that is, if it is known.
        plan: What each tensor is for, and what becomes of each update.
        said: What the file says of itself.
        is_of_a_chain: Whether it is a file of `save_loras`, which `load_loras` reads.
        is_of_several: Whether several models have its names, and sizes do not tell which it is for.
        stabilized: The names of the updates whose multiplier is alpha over the root of the rank.
    """

    label: str
    format: str
    family: Family | None
    compared_with: str | None
    model_family: Family | None
    plan: LoraPlan = field(repr=False)
    said: Mapping[str, str]
    is_of_a_chain: bool = False
    is_of_several: bool = False
    stabilized: frozenset[str] = frozenset()

    @property
    def is_checked(self) -> bool:
        """Whether it was compared with the shapes of a model, and not with names alone."""
        return self.compared_with is not None

    @property
    def is_whole(self) -> bool:
        """Whether everything can be attached, or is left out on purpose, as far as that is known."""
        return self.plan.is_whole or (self._is_of_another_chain and not self.plan.of_status("wrong"))

    @property
    def _is_of_another_chain(self) -> bool:
        return self.is_of_a_chain and not self.is_checked and self.family is None

    def table(self) -> list[LoraRow]:
        """Count the updates that fit by network, kind, rank and multiplier; all of them if none does."""
        counts = Counter(
            (each.part or "", each.kind, each.rank, each.alpha, each.scale, each.name in self.stabilized)
            for each in self.plan.of_status("fits") or self.plan.updates
        )
        return [LoraRow(*group, count) for group, count in counts.items()]

    def layers(self) -> dict[str, int]:
        """Count the updates that fit by what users call such layers, such as `"unet, cross-attention"`."""
        return dict(Counter(f"{each.part}, {_block(each.path)}" for each in self.plan.of_status("fits")))

    def notes(self) -> list[str]:
        """Say what of the multipliers is not as in most files."""
        found: list[str] = []
        if "peft" in self.plan.styles and any("down" in each.keys and each.alpha is None for each in self.plan.updates):
            found.append(
                "alpha is not known: the file does not say it, and the rank is taken for it; PEFT keeps it in"
                " adapter_config.json"
            )
        if self.stabilized:
            found.append("rank-stabilized: the multiplier is alpha / sqrt(rank)")
        return found

    def to_json(self) -> dict[str, Any]:
        """Give everything as values that JSON can hold."""
        names = ("name", "kind", "part", "path", "library", "rank", "alpha", "scale", "status", "reason")
        return {
            "label": self.label,
            "kind": "lora",
            "format": self.format,
            "family": self.family,
            "compared_with": self.compared_with,
            "model_family": self.model_family,
            "is_of_a_chain": self.is_of_a_chain,
            "is_of_several": self.is_of_several,
            "is_checked": self.is_checked,
            "is_whole": self.is_whole,
            "table": [asdict(row) for row in self.table()],
            "layers": self.layers(),
            "notes": self.notes(),
            "updates": [{name: getattr(each, name) for name in names} for each in self.plan.updates],
            "left_over": list(self.plan.left_over),
            "said": dict(self.said),
        }

    def __str__(self) -> str:
        lines = [f"{self.label}: {self._kinds()} for {self._what()}, written by {self.format}"]
        if self.compared_with is not None:
            title = _title(self.model_family)
            lines.append(f"compared with {self.compared_with}{f': {title}' if title else ''}")
        lines += _written(self.table())
        lines += [f"  {count:>6}  {where}" for where, count in self.layers().items()]
        lines += [f"note: {note}" for note in self.notes()]
        if out := self.plan.of_status("left out"):
            lines.append(f"left out, {len(out)}: {out[0].reason or 'as its layer'}, such as {printable(out[0].name)}")
        if self._is_of_another_chain and self.is_whole:
            lines.append("load_loras attaches it to the chain that it was saved of; it was not compared with one")
        elif self.plan.is_whole:
            lines.append(
                "everything fits" + ("" if self.is_checked else " by its name; shapes were not compared with a model")
            )
        else:
            lines += ["cannot be attached:", self.plan.problems()]
        lines += [f"says {name}: {printable(text)}" for name, text in self.said.items()]
        return "\n".join(lines)

    def _what(self) -> str:
        if self._is_of_another_chain:
            return "a chain"
        unknown = "one of several models" if self.is_of_several else "a model that is not known"
        return _title(self.family) or unknown

    def _kinds(self) -> str:
        return ", ".join(dict.fromkeys(each.kind for each in self.plan.updates))


def _title(family: Family | None) -> str:
    return f"{FAMILY_TITLES[family]} ({family})" if family else ""


def _written(rows: Sequence[LoraRow]) -> list[str]:
    width = max(8, *(len(row.kind) + 2 for row in rows))
    is_plain = all(row.is_plain for row in rows)
    lines = [
        f"  {'network':<14}{'kind':<{width}}{'rank':>6}{'alpha':>8}{'' if is_plain else '  multiplier'}{'layers':>8}"
    ]
    for row in rows:
        rank, alpha = ("-" if number is None else f"{number:g}" for number in (row.rank, row.alpha))
        scale = "" if is_plain else f"{row.scale:>12g}"
        lines.append(f"  {row.part or '-':<14}{row.kind:<{width}}{rank:>6}{alpha:>8}{scale}{row.count:>8}")
    return lines


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
        model: The model to compare it with (default: a published one, by its names alone).
        checkpoint: A checkpoint of that model, of which only headers are read, in place of the model.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an argument is of a wrong type.
        ValueError: If it is no LoRA, nor another known update of layers; if model and checkpoint are given both.
    """
    check_model(model, checkpoint)
    if isinstance(file, Mapping):
        return _report(StateDict(file), LoraSettings(), {}, model, checkpoint)
    if not isinstance(file, (str, Path)):
        raise TypeError(f"file must be a path, or tensors by their keys, got {type(file).__name__}")
    check_is_no_pipeline(file)
    with Checkpoint(file) as opened:
        return _report(opened, LoraSettings.of_file(opened.path, opened.metadata), opened.metadata, model, checkpoint)


def check_model(model: LatentDiffusionModel | None, checkpoint: Path | str | None) -> None:
    """Raise `ValueError` if there are both a model and a checkpoint, and `TypeError` if the model is none."""
    if model is not None and checkpoint is not None:
        raise ValueError("model and checkpoint say the same: give one of them")
    if model is not None and not isinstance(model, LatentDiffusionModel):
        hint = ": checkpoint= takes the path of one" if isinstance(model, (str, Path)) else ""
        raise TypeError(f"model must be a LatentDiffusionModel, got {type(model).__name__}{hint}")
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        hint = ": model= takes it" if isinstance(checkpoint, LatentDiffusionModel) else ""
        raise TypeError(f"checkpoint must be a path, got {type(checkpoint).__name__}{hint}")


def _report(
    source: TensorSource,
    settings: LoraSettings,
    metadata: Mapping[str, str],
    model: LatentDiffusionModel | None,
    checkpoint: Path | str | None,
) -> LoraReport:
    split = split_keys(source.infos)
    told = tell_family(split[0], source.infos)
    compared: str | None = None
    family: Family | None = None
    if model is not None:
        targets = targets_of(model)
        plan = plan_lora(source, targets.networks, settings, targets.layer_problem, split)
        compared, family = type(model).__name__, _family_of(targets.networks["unet"])
    elif checkpoint is not None:
        family, networks = targets_in(checkpoint)
        plan = plan_lora(source, networks, settings, split=split)
        compared = str(checkpoint)
    else:
        is_of_another = told.family is None and is_of_a_chain(split[0])  # layers of ours may have such names, too
        plan = plan_lora(source, {} if is_of_another else told.networks, settings, split=split)
    said = {name: metadata[name] for name in _SAID if metadata.get(name)}
    stabilized = (
        each.name for each in plan.updates if each.rank and settings.divisor(each.name, each.rank) != each.rank
    )
    return LoraReport(
        label=source.label,
        format=format_of(plan, split[0], told.libraries),
        family=told.family,
        compared_with=compared,
        model_family=family,
        plan=plan,
        said=said,
        is_of_a_chain=is_of_a_chain(split[0]),
        is_of_several=told.is_of_several,
        stabilized=frozenset(stabilized),
    )


def _family_of(unet: Network) -> Family | None:
    return {"unet_sd1": "sd1", "unet_sdxl": "sdxl"}.get(unet.component or "")  # pyright: ignore[reportReturnType]


def _block(path: str) -> str:
    return next((title for pattern, title in _BLOCKS if re.search(pattern, path)), "other")


__all__ = ["LoraReport", "LoraRow", "Update", "inspect_lora"]
