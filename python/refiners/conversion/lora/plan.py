"""What each tensor of a LoRA file is for, decided before one is read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.lora.keys import Entry, Role, Style, split_keys
from refiners.conversion.lora.kinds import KINDS, LOW_RANK, Kind, Recognised
from refiners.conversion.lora.names import UNUSED, Known, LayerNames, Networks, Part
from refiners.conversion.lora.no_lora import check_is_no_checkpoint, first_keys
from refiners.conversion.lora.numbered import Numbered, place_numbered
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.printable import printable

Status: TypeAlias = Literal["fits", "by order", "left out", "unknown", "wrong", "unsupported"]
"""What becomes of an update: attached, by its name or by its place among others; passed over on purpose; or an error,
since no layer has its name, since its tensors are wrong, or since there is no such adapter yet."""

_PLAIN = {"down", "up", "alpha"}
_UNFIT = ("unknown", "wrong", "unsupported")
_SHOWN = 4
MOST_REASONS = 20  # that an error lists
_NOWHERE = Known("unet", "", "")


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
        kinds: What makes each update, by its name.
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
        """List what cannot be attached by its reasons, of these the first twenty, and of each the first four names."""
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for update in self.of_status(*_UNFIT):
            by_reason[update.reason].append(update.name)
        if self.left_over:
            by_reason["no tensor of an update that is known"] += self.left_over
        listed = list(by_reason.items())[:MOST_REASONS]
        more = len(by_reason) - len(listed)
        rest = [f"  ... and {more} more reasons"] if more else []
        return "\n".join([*(line for reason, found in listed for line in _listing(reason, found)), *rest])

    def check(self) -> None:
        """Raise `ValueError` if something is neither attached nor left out, and list it."""
        if self.is_whole:
            return
        unfit = len(self.of_status(*_UNFIT))
        over = f", {len(self.left_over)} keys are left over" if self.left_over else ""
        raise ValueError(
            f"{self.label}: {unfit} of {len(self.updates)} updates cannot be attached{over}, nothing was changed:\n"
            f"{self.problems()}\n(partial=True attaches the rest)"
        )

    def by_order(self, reason: str) -> LoraPlan:
        """Attach the pairs of matrices whose names are not known in their order."""
        updates = (
            replace(each, status="by order", reason=reason)
            if each.status == "unknown" and set(each.keys) <= {*_PLAIN, "scalar"}
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
    return [f"  {len(names)}: {reason}", *(f"    {printable(name)}" for name in names[:_SHOWN]), *rest]


def plan_lora(
    source: TensorSource,
    networks: Networks,
    settings: LoraSettings | None = None,
    layer_problem: Callable[[Kind, Part, str], str | None] | None = None,
    split: tuple[list[Entry], list[str]] | None = None,
) -> LoraPlan:
    """Find what each tensor of a source is for. Nothing is read but multipliers, each of which is one number.

    Args:
        source: The tensors.
        networks: The networks that the updates are for.
        settings: What is known beside the tensors.
        layer_problem: Says of a network and the path of a layer why it can have no update, if so.
        split: The keys as `split_keys` gives them, where they are split already.

    Raises:
        ValueError: If there is no update of a layer among the tensors; it says so if they are those of a checkpoint.
    """
    entries, left_over = split or split_keys(source.infos)
    if not entries:
        check_is_no_checkpoint(source)
        first = first_keys(source) or "(none)"
        raise ValueError(
            f"{source.label} holds no LoRA, nor another known update of layers; its first keys are {first}"
        )
    planner = _Planner(source, networks, settings or LoraSettings(), layer_problem)
    updates = planner.plan(entries)
    styles: set[Style] = set()
    for entry in entries:
        styles |= entry.styles
    return LoraPlan(
        source.label, tuple(_without_duplicates(updates)), tuple(left_over), frozenset(styles), planner.kinds
    )


class _Planner:
    def __init__(
        self,
        source: TensorSource,
        networks: Networks,
        settings: LoraSettings,
        layer_problem: Callable[[Kind, Part, str], str | None] | None,
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
        kind = _kind_of(entry.keys)
        title = "multiplier" if kind is None else kind.name(infos)
        rank = None if kind is None else kind.rank(infos)
        found = self._told_by_shapes(found, kind, infos)
        known = found[0] if len(found) == 1 else _NOWHERE
        alpha, scale, problem = self._scale_of(entry, infos, rank)
        status: Status = "wrong"
        if found and not known.path and len(found) == 1:
            status, problem = "left out", UNUSED
        elif kind is None:
            problem = "a multiplier without matrices"
        elif isinstance(kind, Recognised):
            status, problem = "unsupported", kind.problem(infos, None)
        else:
            kind = self.kinds[entry.name] = kind.told(self.settings.is_of_inputs(entry.name))
            problem = problem or self._problem_at(known, kind, infos)
            if problem is None and not found:
                status, problem = "unknown", "no layer has this name"
            elif problem is None and len(found) > 1:
                several = ", ".join(f"{each.part} {each.path}" for each in found)
                problem = f"the name may mean several layers: {several}"
            elif problem is None:
                status = "fits"
        return Update(
            name=entry.name,
            keys=entry.keys,
            kind=title,
            part=known.part if known.library else None,
            path=known.path,
            library=known.library,
            rank=rank,
            alpha=alpha,
            scale=scale,
            status=status,
            reason=problem or "",
        )

    def _told_by_shapes(self, found: list[Known], kind: Kind | None, infos: Mapping[Role, TensorInfo]) -> list[Known]:
        """Choose among several layers of a name the only one that the tensors fit, if there is one."""
        if len(found) < 2 or kind is None:
            return found
        fitting = [
            each
            for each in found
            if each.path
            and (self.networks[each.part].shapes or {}).get(each.path)
            and self._problem_at(each, kind, infos) is None
        ]
        return fitting if len(fitting) == 1 else found

    def _problem_at(self, known: Known, kind: Kind, infos: Mapping[Role, TensorInfo]) -> str | None:
        if not known.path:
            return kind.problem(infos, None)
        if self.layer_problem is not None and (problem := self.layer_problem(kind, known.part, known.path)):
            return problem
        return kind.problem(infos, (self.networks[known.part].shapes or {}).get(known.path))

    def _scale_of(
        self, entry: Entry, infos: Mapping[Role, TensorInfo], rank: int | None
    ) -> tuple[float | None, float, str | None]:
        """Give alpha, what the product of the matrices is multiplied by, and what is wrong with these."""
        numbers: dict[Role, float] = {}
        for role in ("alpha", "scalar"):
            if role in infos and infos[role].shape.numel() == 1:
                number = self.source.view(entry.keys[role])
                if number.is_meta or number.is_complex():
                    return None, 1.0, f"{role} must be a real number, got one of {number.dtype} on {number.device}"
                numbers[role] = float(number.item())
                if not math.isfinite(numbers[role]):
                    return None, 1.0, f"{role} must be finite, got {numbers[role]}"
        alpha = numbers.get("alpha")
        if alpha is None:
            alpha = self.settings.alpha(entry.name)
            rank = rank or self.settings.rank(entry.name)  # PEFT divides by it where nothing has a rank, too
        scale = numbers.get("scalar", 1.0)
        if rank and alpha is not None:
            scale *= alpha / self.settings.divisor(entry.name, rank)
        if not math.isfinite(scale):
            return alpha, 1.0, "the multipliers have an infinite product"
        return alpha, scale, None


def _kind_of(roles: Mapping[Role, str]) -> Kind | None:
    if "down" in roles and roles.keys() <= _PLAIN:  # most are
        return LOW_RANK
    return next((each for each in KINDS if each.is_told_by(roles)), None)


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
