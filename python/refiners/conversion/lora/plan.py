"""What each tensor of a LoRA file is for, decided before one is read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias


from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.lora.keys import Entry, Role, Style, split_keys
from refiners.conversion.lora.kinds import RECOGNISED, Kind, LowRank
from refiners.conversion.lora.names import UNUSED, Known, LayerNames, Networks, Part
from refiners.conversion.lora.numbered import Numbered, place_numbered
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.tensor_info import TensorInfo

Status: TypeAlias = Literal["fits", "by order", "left out", "unknown", "wrong", "unsupported"]
"""What becomes of an update: attached, by its name or by its place among others; passed over on purpose; or an error,
since no layer has its name, since its tensors are wrong, or since there is no such adapter yet."""

KINDS: tuple[Kind, ...] = (*RECOGNISED, LowRank())
_UNFIT = ("unknown", "wrong", "unsupported")
_SHOWN = 4
INCOMPLETE = "a multiplier without matrices"


@dataclass(frozen=True)
class Update:
    """The update of one layer.

    Attributes:
        name: The layer, as the file calls it.
        keys: The keys of its tensors, by what they are for.
        kind: What users call it: LoRA, LoCon, DoRA, ...
        part: The network of the layer; `None` if its name is not known.
        path: Our name of the layer in it, without adapters; empty if it is not known.
        library: Whose names are used.
        rank: The inner dimension, if there is one.
        alpha: The multiplier of its training, over the rank; `None` if none is given, which means the rank.
        scale: What the product of its matrices is multiplied by: alpha / rank, as a rule.
        status: What becomes of it.
        reason: Why, if it is not attached.
    """

    name: str
    keys: Mapping[Role, str] = field(repr=False)
    kind: str
    part: Part | None = None
    path: str = ""
    library: str = ""
    rank: int | None = None
    alpha: float | None = None
    scale: float = 1.0
    status: Status = "fits"
    reason: str = ""


@dataclass(frozen=True)
class LoraPlan:
    """What a file holds, and what becomes of it.

    Attributes:
        label: How errors name the file.
        updates: The updates of layers, in the order of the file.
        left_over: The keys that are no tensors of an update.
        styles: Who writes such keys.
        kinds: What makes the updates, by their names.
    """

    label: str
    updates: tuple[Update, ...]
    left_over: tuple[str, ...]
    styles: frozenset[Style]
    kinds: Mapping[str, Kind] = field(repr=False)

    def of_status(self, *status: Status) -> list[Update]:
        """List the updates of which this becomes."""
        return [update for update in self.updates if update.status in status]

    @property
    def is_whole(self) -> bool:
        """Whether everything is attached, or left out on purpose."""
        return not self.left_over and not self.of_status(*_UNFIT)

    def problems(self) -> str:
        """List what cannot be attached by its reasons, and of each the first four."""
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for update in self.of_status(*_UNFIT):
            by_reason[update.reason].append(update.name)
        if self.left_over:
            by_reason["no tensor of an update that is known"] += self.left_over
        return "\n".join(line for reason, found in by_reason.items() for line in _listing(reason, found))

    def check(self) -> None:
        """Raise `ValueError` if something is neither attached nor left out, and list it."""
        if self.is_whole:
            return
        unfit = len(self.of_status(*_UNFIT))
        over = f", and {len(self.left_over)} keys are left over" if self.left_over else ""
        raise ValueError(
            f"{self.label}: {unfit} of {len(self.updates)} updates cannot be attached{over}; nothing was changed"
            f" (partial=True attaches the rest)\n{self.problems()}"
        )

    def by_order(self, reason: str) -> LoraPlan:
        """Attach the pairs of matrices whose names are not known in their order."""
        updates = (
            replace(each, status="by order", reason=reason)
            if each.status == "unknown" and "mid" not in each.keys
            else each
            for each in self.updates
        )
        return replace(self, updates=tuple(updates))

    def within(self, is_in_scope: Callable[[Update], bool]) -> LoraPlan:
        """Leave out the updates that are not in a scope."""
        outside = {"status": "left out", "reason": "outside of the scope that was asked for"}
        updates = (
            replace(each, **outside) if each.status == "fits" and not is_in_scope(each) else each
            for each in self.updates
        )
        return replace(self, updates=tuple(updates))


def _listing(reason: str, names: list[str]) -> list[str]:
    rest = [f"    ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"  {len(names)}: {reason}", *(f"    {name}" for name in names[:_SHOWN]), *rest]


def plan_lora(
    source: TensorSource,
    networks: Networks,
    settings: LoraSettings | None = None,
    layer_problem: Callable[[Part, str], str | None] | None = None,
) -> LoraPlan:
    """Find what each tensor of a source is for. Nothing is read but multipliers, each of which is one number.

    Args:
        source: The tensors.
        networks: The networks that the updates are for.
        settings: What is known beside the tensors.
        layer_problem: Says of a network and the path of a layer why it can have no update, if so.

    Raises:
        ValueError: If there is no update of a layer among the tensors.
    """
    entries, left_over = split_keys(source.infos)
    if not entries:
        first = ", ".join(list(source.infos)[:3]) or "(none)"
        raise ValueError(
            f"{source.label} holds no LoRA, nor another known update of layers; its first keys are {first}"
        )
    planner = _Planner(source, networks, settings or LoraSettings(), layer_problem)
    updates = planner.plan(entries)
    styles = frozenset(style for entry in entries for style in entry.styles)
    return LoraPlan(source.label, tuple(_without_duplicates(updates)), tuple(left_over), styles, planner.kinds)


class _Planner:
    def __init__(
        self,
        source: TensorSource,
        networks: Networks,
        settings: LoraSettings,
        layer_problem: Callable[[Part, str], str | None] | None,
    ) -> None:
        self.source = source
        self.networks = networks
        self.settings = settings
        self.layer_problem = layer_problem
        self.names = LayerNames(networks)
        self.kinds: dict[str, Kind] = {}

    def plan(self, entries: list[Entry]) -> list[Update]:
        found = {entry.name: self.names.find(entry.name) for entry in entries}
        found |= self._find_numbered([entry for entry in entries if not found[entry.name]])
        return [self._update(entry, found[entry.name]) for entry in entries]

    def _find_numbered(self, entries: list[Entry]) -> dict[str, list[Known]]:
        sizes: dict[Numbered, tuple[int, int]] = {}
        names: dict[str, Numbered] = {}
        for entry in entries:
            numbered, infos = Numbered.read(entry.name), self._infos(entry)
            if numbered is not None and all(len(infos[role].shape) > 1 for role in ("down", "up") if role in infos):
                names[entry.name] = numbered
                sizes[numbered] = (_size(infos, "down", 1), _size(infos, "up", 0))
        found: dict[str, list[Known]] = {entry.name: [] for entry in entries}
        for part, network in self.networks.items():
            layers = self.names.layers[part]
            mine = {each: size for each, size in sizes.items() if each.root in self.names.roots[part]}
            placed = place_numbered(mine, {path: (network.shapes or {}).get(path) for path in layers}) if mine else {}
            for name, numbered in names.items():
                found[name] += [Known(part, path, "refiners") for path in placed.get(numbered, [])]
        return found

    def _infos(self, entry: Entry) -> dict[Role, TensorInfo]:
        return {role: self.source.infos[key] for role, key in entry.keys.items()}

    def _update(self, entry: Entry, found: list[Known]) -> Update:
        infos = self._infos(entry)
        kind = next((each for each in KINDS if each.is_told_by(entry.keys)), None)
        if kind is None:
            known = found[0] if len(found) == 1 else Known("unet", "", "original")
            if found and not known.path:
                return Update(entry.name, entry.keys, "multiplier", known.part, "", known.library, status="left out")
            return Update(entry.name, entry.keys, "multiplier", status="wrong", reason=INCOMPLETE)
        title = kind.name(infos)
        self.kinds[title] = kind
        update = Update(entry.name, entry.keys, title, rank=kind.rank(infos))
        if len(found) == 1:
            update = replace(update, part=found[0].part, path=found[0].path, library=found[0].library)
        update, problem = self._scaled(update, infos)
        if len(found) == 1 and not update.path:
            return replace(update, status="left out", reason=UNUSED)
        if not isinstance(kind, LowRank):
            return replace(update, status="unsupported", reason=kind.problem(infos, None) or "")
        if problem := problem or kind.problem(infos, None):
            return replace(update, status="wrong", reason=problem)
        if not found:
            return replace(update, status="unknown", reason="no layer has this name")
        if len(found) > 1:
            several = ", ".join(f"{known.part} {known.path}" for known in found)
            return replace(update, status="wrong", reason=f"the name may mean several layers: {several}")
        return self._fitted(update, kind, infos)

    def _fitted(self, update: Update, kind: Kind, infos: Mapping[Role, TensorInfo]) -> Update:
        assert update.part is not None
        problem = None if self.layer_problem is None else self.layer_problem(update.part, update.path)
        shape = (self.networks[update.part].shapes or {}).get(update.path)
        problem = problem or kind.problem(infos, shape)
        return update if problem is None else replace(update, status="wrong", reason=problem)

    def _scaled(self, update: Update, infos: Mapping[Role, TensorInfo]) -> tuple[Update, str | None]:
        numbers: dict[Role, float] = {}
        for role in ("alpha", "scalar"):
            if role in infos and infos[role].shape.numel() == 1:
                numbers[role] = float(self.source.read(update.keys[role]))
                if not math.isfinite(numbers[role]):
                    return update, f"{role} must be finite, got {numbers[role]}"
        alpha = numbers.get("alpha", self.settings.alpha(update.name))
        scale = numbers.get("scalar", 1.0)
        if update.rank and alpha is not None:
            scale *= alpha / self.settings.divisor(update.name, update.rank)
        return replace(update, alpha=alpha, scale=scale), None


def _size(infos: Mapping[Role, TensorInfo], role: Role, axis: int) -> int:
    return infos[role].shape[axis] if role in infos else 0


def _without_duplicates(updates: Iterable[Update]) -> list[Update]:
    """Mark updates of one layer under several names as wrong."""
    by_layer: defaultdict[tuple[Part | None, str], list[Update]] = defaultdict(list)
    updates = list(updates)
    for update in updates:
        if update.path:
            by_layer[update.part, update.path].append(update)
    twice = {update.name: group for group in by_layer.values() if len(group) > 1 for update in group}
    return [
        replace(update, status="wrong", reason=f"{update.path} has several updates") if update.name in twice else update
        for update in updates
    ]
