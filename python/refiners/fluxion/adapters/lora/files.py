"""Low-rank updates of any chain in a file, by the paths of their layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Size, Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.attach import attach_loras
from refiners.fluxion.adapters.lora.checks import check_name, check_scale
from refiners.fluxion.adapters.lora.convolution import geometry_of, sizes_of
from refiners.fluxion.adapters.lora.lora import Conv2dLora, LinearLora, Lora
from refiners.fluxion.adapters.lora.places import Place, find_places, updates_around
from refiners.fluxion.bulk import collections_paused
from refiners.fluxion.utils import save_to_safetensors

_ROLES = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
_KEY = re.compile(r"(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_FLOATING = ("F64", "F32", "F16", "BF16")
_SHOWN = 10

Keys = Mapping[str, str]  # of one layer, by what they are for


def save_loras(chain: fl.Chain, name: str, path: Path | str, /, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the low-rank updates of a name to a file, by the paths of their layers; `load_loras` reads it.

    For each layer there are `<path>.lora_down.weight`, `<path>.lora_up.weight` and `<path>.alpha`, by which readers
    multiply, divided by the rank; a path is the key of the layer in the state dict of the chain without adapters. The
    scale that the updates have now is not written. For models of diffusion, `refiners.conversion.lora.save_lora` writes
    files that other programs read.

    Args:
        chain: The chain that they are attached to.
        name: The name of the updates.
        path: The file to write, of safetensors.
        metadata: What to say in the file.

    Raises:
        ValueError: If the path has another ending, there are no updates of this name, or one is no pair of matrices, of
            which the second is no larger than 1×1; nothing is written.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    tensors: dict[str, Tensor] = {}
    for layer, place in find_places(chain).items():
        for update in (each for each in updates_around(place) if each.name == name):
            if not isinstance(update, Lora) or cast(Tensor, update.up.weight).shape[2:] not in ((), (1, 1)):
                raise ValueError(f"{layer}: the update {update} is no pair of matrices, the second of 1×1")
            down, up = update.factors()
            alpha = torch.tensor(update.multiplier * down.shape[0])
            for role, tensor in (("down", down), ("up", up), ("alpha", alpha)):
                tensors[f"{layer}.{_ROLES[role]}"] = tensor.detach().contiguous().clone()
    if not tensors:
        raise ValueError(f"no updates of the name {name!r} are attached to {type(chain).__name__}")
    save_to_safetensors(path, tensors, {"format": "pt", **(metadata or {})})


def load_loras(chain: fl.Chain, name: str, path: Path | str, /, *, scale: float | Tensor = 1.0) -> dict[str, Lora[Any]]:
    """Attach the updates in a file of `save_loras` to the layers that they are named after: all of them, or none.

    Args:
        chain: The chain.
        name: How to call the updates, which no layer among theirs has an update of.
        path: The file. Its header is read first, and its tensors only if all of them fit.
        scale: The multiplier of the updates, beside that of the file.

    Returns:
        The updates by the paths of their layers, in the dtypes of these.

    Raises:
        TypeError: If the name is no text, or an empty one, or the scale neither a number nor a tensor.
        FileNotFoundError: If there is no such file.
        ValueError: If the scale is not finite, it is no file of safetensors, a key, a shape or a number is wrong, or a
            layer is missing or has an update of this name, with a list of what and why; the chain is as it was.
    """
    check_name(name)
    check_scale(name, scale)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    places = find_places(chain)
    try:
        opened = cast(Any, safetensors).safe_open(path, framework="pt")
    except cast(Any, safetensors).SafetensorError as error:
        raise ValueError(f"{path} is no file of safetensors: {error}") from error
    with opened as file, collections_paused():
        found = _entries(file, path)
        entries = {layer: found[layer] for layer in places if layer in found} | found  # as they stand in the tree
        _raise_if_any(path, _problems(file, entries, places, name))
        made = {layer: _read(file, name, keys, places[layer].layer) for layer, keys in entries.items()}
    _raise_if_any(path, (f"{layer}: {problem}" for layer, lora in made.items() for problem in _not_finite(lora)))
    with collections_paused():
        for lora in made.values() if isinstance(scale, Tensor) or scale != 1 else ():
            lora.scale = scale
        attach_loras((lora, places[layer]) for layer, lora in made.items())
    return made


def _raise_if_any(path: Path | str, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        lines = "\n  ".join([*found[:_SHOWN], *more])
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ValueError(f"{path}: {count}, nothing was attached:\n  {lines}")


def _entries(file: Any, path: Path | str) -> dict[str, Keys]:
    """Collect the keys of each layer; raise where one is of none."""
    entries: dict[str, dict[str, str]] = {}
    roles = {ending: role for role, ending in _ROLES.items()}
    unknown: list[str] = []
    for key in file.keys():  # noqa: SIM118 (it is no mapping)
        found = _KEY.fullmatch(key)
        if found is None:
            unknown.append(f"{key} is none of {', '.join(f'<path>.{ending}' for ending in roles)}")
        else:
            entries.setdefault(found[1], {})[roles[found[2]]] = key
    _raise_if_any(path, unknown if entries else ["there are no updates in it", *unknown])
    return dict(entries)


def _problems(file: Any, entries: Mapping[str, Keys], places: Mapping[str, Place], name: str) -> Iterator[str]:
    for layer, keys in entries.items():
        problem = _problem(file, keys, places.get(layer), name)
        if problem is not None:
            yield f"{layer}: {problem}"


def _problem(file: Any, keys: Keys, place: Place | None, name: str) -> str | None:
    """Say what is wrong with the tensors of a layer, by the header of the file and alpha."""
    if place is None or place.parent is None:
        return "the chain has no such layer"
    layer = place.layer
    if lost := [role for role in ("down", "up") if role not in keys]:
        return f"the matrix {lost[0]!r} is missing"
    if not isinstance(layer, (fl.Linear, fl.Conv2d)) or (isinstance(layer, fl.Conv2d) and layer.groups != 1):
        return f"the layer can have no low-rank update: {layer}"
    slices = {role: file.get_slice(key) for role, key in keys.items()}
    if wrong := [each.get_dtype() for each in slices.values() if each.get_dtype() not in _FLOATING]:
        return f"numbers must be of floating point, got {wrong[0]}"
    shapes = {role: Size(each.get_shape()) for role, each in slices.items()}
    down, up, weight = shapes["down"], shapes["up"], layer.weight
    rank, ones = down[0] if down else 0, (1,) * (weight.ndim - 2)
    if rank == 0 or (down, up) != ((rank, *weight.shape[1:]), (weight.shape[0], rank, *ones)):
        return f"down {tuple(down)} and up {tuple(up)} do not fit the layer's weight, which is {tuple(weight.shape)}"
    if "alpha" in shapes and shapes["alpha"].numel() != 1:
        return f"alpha must be one number, got shape {tuple(shapes['alpha'])}"
    if "alpha" in keys and not math.isfinite(alpha := file.get_tensor(keys["alpha"]).item()):
        return f"alpha must be finite, got {alpha}"
    if any(update.name == name for update in updates_around(place)):
        return f"the layer has an update of the name {name!r}"
    return None


def _read(file: Any, name: str, keys: Keys, layer: fl.WeightedModule) -> Lora[Any]:
    """Read an update on the device and in the dtype of its layer, the multiplier of the file put into `up`."""
    down, up = (cast(Tensor, file.get_tensor(keys[role])) for role in ("down", "up"))
    rank = down.shape[0]
    alpha = file.get_tensor(keys["alpha"]).item() if "alpha" in keys else rank
    if alpha != rank:
        up = up.to(torch.promote_types(up.dtype, torch.float32)) * (alpha / rank)
    # Copies, because the file's pages may change or vanish.
    down, up = (each.to(device=layer.device, dtype=layer.dtype, copy=True) for each in (down, up))
    if not isinstance(layer, fl.Conv2d):
        return LinearLora.from_weights(name, down=down, up=up)
    options: dict[str, Any] = {"rank": rank, "device": "meta", **sizes_of(layer)}
    lora = Conv2dLora(name, layer.in_channels, layer.out_channels, **options)
    like_the_layer = fl.Conv2d(layer.in_channels, rank, **geometry_of(layer), use_bias=False, device="meta")
    lora.replace(lora.down, like_the_layer)
    lora.down.weight, lora.up.weight = nn.Parameter(down), nn.Parameter(up)
    return lora


def _not_finite(lora: Lora[Any]) -> Iterator[str]:
    for role, weight in (("down", lora.down.weight), ("up", lora.up.weight)):
        if not torch.isfinite(weight).all():
            yield f"{role} holds numbers that are not finite in {weight.dtype}"
