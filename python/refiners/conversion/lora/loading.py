"""The updates of a file, attached to a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from refiners.conversion.checkpoint import Checkpoint, StateDict, TensorSource
from refiners.conversion.lora.keys import Entry, split_keys
from refiners.conversion.lora.kinds import LOW_RANK
from refiners.conversion.lora.names import Part
from refiners.conversion.lora.no_lora import check_is_no_checkpoint, check_is_no_pipeline, first_keys
from refiners.conversion.lora.plan import MOST_REASONS, LoraPlan, Update, plan_lora
from refiners.conversion.lora.reading import read_tensors, read_updates
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.targets import Targets, targets_of
from refiners.fluxion.adapters.lora import LayerUpdate, Lora
from refiners.fluxion.adapters.lora.attach import attach_loras
from refiners.fluxion.bulk import collections_paused
from refiners.fluxion.printable import printable
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

Scope: TypeAlias = tuple[Collection[str] | None, Collection[str] | None]
"""Classes of which a layer must have one above it, and classes of which it must have none; `None` asks for nothing."""

ByOrder: TypeAlias = Callable[[dict[str, Lora[Any]]], None]
"""Attaches updates of unknown names, by their keys."""


def attach_lora(
    model: LatentDiffusionModel,
    name: str,
    source: Path | str | Mapping[str, Tensor] | TensorSource,
    *,
    scale: float | Tensor = 1.0,
    scopes: Mapping[Part, Scope] | None = None,
    partial: bool = False,
    by_order: ByOrder | None = None,
) -> LoraPlan:
    """Attach the updates of a file to the layers that they are named after: all of them, or none.

    Args:
        model: The model.
        name: The name of all the updates, which none has yet.
        source: A file, a folder of PEFT, or tensors by their keys.
        scale: The multiplier of the updates, beside that of the file.
        scopes: Where in each network to attach updates; others are left out.
        partial: Whether to attach what can be attached, and leave the rest.
        by_order: Attaches the updates of a file of which no name is known.

    Returns:
        What became of each update.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something cannot be attached, or nothing would be, with a list of what and why; if it is a
            checkpoint. The model is as it was.
    """
    if isinstance(source, (str, Path)):
        check_is_no_pipeline(source)
        with collections_paused(), Checkpoint(source) as opened:
            return attach_lora(model, name, opened, scale=scale, scopes=scopes, partial=partial, by_order=by_order)
    tensors = StateDict(source) if isinstance(source, Mapping) else source
    with collections_paused():
        return _attach(model, name, tensors, scale, scopes or {}, partial, None if partial else by_order)


def _attach(
    model: LatentDiffusionModel,
    name: str,
    tensors: TensorSource,
    scale: float | Tensor,
    scopes: Mapping[Part, Scope],
    partial: bool,
    by_order: ByOrder | None,
) -> LoraPlan:
    split = split_keys(tensors.infos)
    if not split[0]:
        check_is_no_checkpoint(tensors)
    if by_order is not None and not split[0]:
        loras = _from_order(name, tensors, model)
        if loras:
            _set_scale(loras.values(), scale)
            _attach_unnamed(loras, by_order, tensors)
            updates = (Update(key, {}, "LoRA", status="by order", reason=_BY_ORDER) for key in loras)
            return LoraPlan(tensors.label, tuple(updates), (), frozenset(), {})
    plan, targets = plan_for(model, tensors, scopes, split)
    if by_order is not None and not any(update.path for update in plan.updates):  # no name is known
        plan = plan.by_order(_BY_ORDER)
    if not partial:
        if by_order is None:
            _check_names(plan)
        plan.check()
    if not plan.of_status("fits", "by order"):
        raise ValueError(_nothing_to_attach(plan, scopes))
    made = read_updates(name, plan, tensors, targets)
    unnamed = _read_unnamed(name, plan, tensors, model)
    _set_scale((*(lora for lora, _ in made), *unnamed.values()), scale)
    attach_loras(made)
    if unnamed and by_order is not None:
        _attach_unnamed(unnamed, by_order, tensors)
    return plan


def _check_names(plan: LoraPlan) -> None:
    """Raise `ValueError` if none of the names of updates is known: the file is for another kind of model."""
    if all(update.status == "unknown" for update in plan.updates):
        first = printable(plan.updates[0].name)
        raise ValueError(
            f"{plan.label}: no layer of the model has one of the names of its {len(plan.updates)} updates, such as"
            f" {first}: it may be for another kind of model (by_order=True attaches updates by order and shape)"
        )


def plan_for(
    model: LatentDiffusionModel,
    tensors: TensorSource,
    scopes: Mapping[Part, Scope],
    split: tuple[list[Entry], list[str]] | None = None,
) -> tuple[LoraPlan, Targets]:
    """Find what each tensor of a source is for in a model; see `plan_lora`.

    Args:
        model: The model.
        tensors: The source.
        scopes: Where in each network there may be updates; others are left out.
        split: The keys as `split_keys` gives them, where they are split already.
    """
    settings = LoraSettings()
    if isinstance(tensors, Checkpoint):
        settings = LoraSettings.of_file(tensors.path, tensors.metadata)
    targets = targets_of(model)
    plan = plan_lora(tensors, targets.networks, settings, targets.layer_problem, split)
    if any(scope != (None, None) for scope in scopes.values()):
        plan = plan.within(lambda update: _is_within(update, targets, scopes))
    return plan, targets


def _nothing_to_attach(plan: LoraPlan, scopes: Mapping[Part, Scope]) -> str:
    counts = Counter(f"{update.part or 'no network'}, {update.status}: {update.reason}" for update in plan.updates)
    asked = [
        f"{part}_{kind}={list(names)}"
        for part, scope in scopes.items()
        for kind, names in zip(("inclusions", "exclusions"), scope)
        if names is not None
    ]
    lines = [f"  {count}: {what}" for what, count in counts.most_common(MOST_REASONS)]
    return "\n".join(
        (f"{plan.label}: no update would be attached{' with ' + ', '.join(asked) if asked else ''}:", *lines)
    )


def _set_scale(loras: Iterable[LayerUpdate], scale: float | Tensor) -> None:
    for lora in loras if isinstance(scale, Tensor) or scale != 1 else ():
        lora.scale = scale


_BY_ORDER = "no layer has this name: attached by order and shape"


def _is_within(update: Update, targets: Targets, scopes: Mapping[Part, Scope]) -> bool:
    if update.part is None or update.part not in scopes:
        return True
    include, exclude = scopes[update.part]
    if include is None and exclude is None:
        return True
    above = targets.places[update.part][update.path].class_names
    return (include is None or not above.isdisjoint(include)) and (exclude is None or above.isdisjoint(exclude))


def _from_order(name: str, source: TensorSource, model: LatentDiffusionModel) -> dict[str, Lora[Any]]:
    """Make updates from keys that end in no known way, two by two; see `Lora.from_dict`."""
    keys = [key for key in source.infos if ".weight" in key]
    for key in keys:
        info = source.infos[key]
        if not info.dtype.is_floating_point or len(info.shape) not in (2, 4) or 0 in info.shape:
            raise ValueError(
                f"{source.label}: '{printable(key)}' is no matrix of an update: got {tuple(info.shape)} in"
                f" {info.dtype}; the first keys of the file are {first_keys(source)}"
            )
    try:
        loras = Lora.from_dict(name, {key: source.read(key, model.device, model.dtype) for key in keys})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{source.label}: the tensors are no pairs of matrices, by their order: {error}") from error
    _check_unnamed(loras, source)
    return loras


def _read_unnamed(name: str, plan: LoraPlan, source: TensorSource, model: LatentDiffusionModel) -> dict[str, Lora[Any]]:
    loras: dict[str, Lora[Any]] = {}
    for update in plan.of_status("by order"):
        tensors = read_tensors(update, LOW_RANK, source, model.device, model.dtype)
        try:
            loras[update.name] = Lora.from_weights(name, down=tensors["down"], up=tensors["up"])
        except ValueError as error:
            raise ValueError(f"{plan.label}: {printable(update.name)}: {error}") from error
    _check_unnamed(loras, source)
    return loras


def _check_unnamed(loras: Mapping[str, Lora[Any]], source: TensorSource) -> None:
    for key, lora in loras.items():
        for weight in lora.parameters():
            if not weight.is_meta and not torch.isfinite(weight).all():
                raise ValueError(
                    f"{source.label}: '{printable(key)}' holds numbers that are not finite in {weight.dtype}"
                )


def _attach_unnamed(loras: dict[str, Lora[Any]], by_order: ByOrder, source: TensorSource) -> None:
    try:
        by_order(loras)
    except ValueError as error:
        raise ValueError(f"{source.label}: no layers are known by the names of its updates, and {error}") from error
