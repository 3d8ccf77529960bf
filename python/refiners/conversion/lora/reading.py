"""The tensors of updates, read from a file by plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, device as Device, dtype as DType

from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds import LOW_RANK, Kind
from refiners.conversion.lora.kinds.kind import NUMBERS
from refiners.conversion.lora.plan import LoraPlan, Update
from refiners.conversion.lora.targets import Targets
from refiners.fluxion.adapters.lora import LayerUpdate
from refiners.fluxion.adapters.lora.places import Place
from refiners.fluxion.printable import printable

_WIDE = (torch.bfloat16, torch.float32, torch.float64)  # the exponents of float16 run out


def read_updates(name: str, plan: LoraPlan, source: TensorSource, targets: Targets) -> list[tuple[LayerUpdate, Place]]:
    """Read what a plan attaches, on the device and in the dtype of each layer.

    The multiplier of the file is put into a matrix, so that the scale of an update is the user's alone.

    Args:
        name: The name of all the updates.
        plan: What to read.
        source: The tensors.
        targets: The model that the plan was made for.

    Raises:
        ValueError: If a tensor holds infinite numbers, or none, also in the dtype of its layer; or if an update does
            not fit its layer after all.
    """
    made: list[tuple[LayerUpdate, Place]] = []
    sums: list[Tensor] = []
    updates = plan.of_status("fits")
    for update in sorted(updates, key=lambda each: source.place(next(iter(each.keys.values())))):
        assert update.part is not None
        place = targets.places[update.part][update.path]
        weight = place.layer.weight
        kind = plan.kinds[update.name]
        tensors = read_tensors(update, kind, source, weight.device, weight.dtype)
        sums += [sum_of(tensor) for tensor in tensors.values()]
        try:
            made.append((kind.make(name, tensors, place.layer), place))
        except ValueError as error:  # what shapes do not tell
            raise ValueError(f"{plan.label}: {printable(update.name)}: {error}") from error
    check_finite(sums, plan, source, targets)
    return made


def check_finite(sums: Iterable[Tensor], plan: LoraPlan, source: TensorSource, targets: Targets) -> None:
    """Raise `ValueError` if one of the sums of the tensors that a plan attaches is not finite, and a tensor neither."""
    if all(each.is_meta or math.isfinite(each.item()) for each in sums):
        return
    for update in plan.of_status("fits"):
        assert update.part is not None
        weight = targets.places[update.part][update.path].layer.weight
        _check_finite(update, plan, source, weight.device, weight.dtype)


def read_tensors(update: Update, kind: Kind, source: TensorSource, device: Device, dtype: DType) -> dict[Role, Tensor]:
    """Read the tensors of an update, those that carry its scale multiplied by it."""
    keys = {role: key for role, key in update.keys.items() if role not in NUMBERS}
    scaled = _scaled(update, kind, source, device, dtype)
    tensors: dict[Role, Tensor] = {}
    for role, key in keys.items():
        scale = update.scale if role in scaled else 1.0
        is_exact = dtype in _WIDE and scale > 0 and math.frexp(scale)[0] == 0.5
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if role in kind.less_one:
            tensors[role] = source.read(key, device, wide).sub_(1).to(dtype)
        elif scale == 1:
            tensors[role] = source.read(key, device, dtype)
        elif is_exact:
            tensors[role] = source.read(key, device, dtype).mul_(scale)
        else:  # rounded once, however the file holds it
            tensors[role] = source.read(key, device, wide).mul_(scale).to(dtype)
    return tensors


def _scaled(update: Update, kind: Kind, source: TensorSource, device: Device, dtype: DType) -> Collection[Role]:
    """Say which tensors carry the scale of an update.

    The numbers of float16 are soon too small to be precise: there the matrix of the larger ones is made smaller, or
    that of the smaller ones larger.
    """
    roles = kind.scaled(update.keys)
    if kind is not LOW_RANK or dtype != torch.float16 or update.scale in (0, 1) or device.type == "meta":
        return roles
    largest = {role: source.read(update.keys[role], device, torch.float32).abs().max() for role in ("down", "up")}
    return ("down",) if bool(largest["down"] > largest["up"]) == (abs(update.scale) < 1) else ("up",)


def sum_of(tensor: Tensor) -> Tensor:
    """Add numbers up: the sum is finite if they are, but for a few that are too large. Much faster than to look."""
    return tensor.sum(dtype=torch.float32) if tensor.dtype == torch.float16 else tensor.sum()


def _check_finite(update: Update, plan: LoraPlan, source: TensorSource, device: Device, dtype: DType) -> None:
    """Raise `ValueError` if a tensor of an update is not finite, in the file or as it is attached."""
    for role, tensor in read_tensors(update, plan.kinds[update.name], source, device, dtype).items():
        if torch.isfinite(tensor).all():
            continue
        of_file = torch.isfinite(source.read(update.keys[role], dtype=torch.float64)).all()
        why = f"are not finite in {dtype}, times {update.scale:g}" if of_file else "are not finite"
        name, key = printable(update.name), printable(update.keys[role])
        raise ValueError(f"{plan.label}: {role} of {name} holds numbers that {why} ({key})")
