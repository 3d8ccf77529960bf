"""A LoRA file made of the difference of two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Size, Tensor, device as Device, dtype as DType

from refiners.conversion.detection import Found
from refiners.conversion.diffusion import Family, OpenedSources, family_of
from refiners.conversion.formats import Component
from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.metadata import check_metadata, lora_metadata
from refiners.conversion.lora.names import Network, Networks, Part
from refiners.conversion.lora.spelling import Layer, LoraFormat, layers_of
from refiners.conversion.lora.targets import COMPONENTS
from refiners.conversion.lora.tools.low_rank import Bound, truncate
from refiners.conversion.lora.tools.opened import widest
from refiners.conversion.lora.tools.written import (
    Progress,
    WrittenLayer,
    WrittenLora,
    check_dtype,
    no_progress,
    pair_pieces,
    rounded_pieces,
)
from refiners.conversion.lora.writing import LayerPieces, check_destination, check_format, write_lora

_PAIRS, _NORMS = ("Linear", "Conv2d"), ("LayerNorm", "GroupNorm")
_NORM_ROLES: Mapping[str, Role] = {"weight": "w_norm", "bias": "b_norm"}
_SHOWN = 10


class _Compared(NamedTuple):
    """One network of both checkpoints."""

    part: Part
    base: Found
    tuned: Found

    def difference(self, key: str, device: Device | str) -> Tensor | None:
        """Give the difference of a tensor in float32, or `None` if there is none."""
        one, other = (each.recipes[key].make(each.source) for each in (self.base, self.tuned))
        coarse = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        if torch.equal(one.to(coarse).float(), other.to(coarse).float()):
            return None
        delta = other.to(device, torch.float32) - one.to(device, torch.float32)
        if not bool(torch.isfinite(delta).all()):
            raise ValueError(f"{self.tuned.source.label}: {key} differs by numbers that are not finite")
        return delta


def extract_lora(
    base: Path | str,
    tuned: Path | str,
    destination: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    parts: tuple[Part, ...] = ("unet", "text_encoder"),
    norms: bool = False,
    format: LoraFormat = "kohya",
    dtype: DType | None = None,
    metadata: Mapping[str, str] | None = None,
    device: Device | str = "cpu",
    progress: Progress | None = None,
) -> WrittenLora:
    """Write a LoRA file that does to a checkpoint nearly what fine-tuning did.

    The difference of the weights of each layer, of a convolution as a matrix [out, in·height·width], is replaced by the
    nearest matrix of a rank: no other is nearer, see `truncate`. It is computed in float32, and one layer at a time is
    in memory, beside the result. A layer is without difference, and left out, where both weights are equal once they
    are rounded to the dtype of lower precision of the two.

    Args:
        base: The checkpoint that the fine-tuning began with: a file or folder of any format that `describe` knows.
        tuned: The fine-tuned one, of the same or another format.
        destination: The file to write, of safetensors.
        rank: The rank of each layer, or with `energy` the largest one. One of the two must be given.
        energy: The share of the energy, the sum of the squares of the singular values, to keep of each layer by as low
            a rank as does.
        parts: Which networks: `"unet"`, and `"text_encoder"` for all text encoders. One that only one of the
            checkpoints has is left out.
        norms: Whether to write the differences of norms, as they are. Only the format `"kohya"` has tensors for them.
        format: Who is to read the file; see `convert_lora`.
        dtype: The dtype of the file (default: that of the fine-tuned weights, of 16 bits at least).
        metadata: Texts to save with the tensors; see `lora_metadata`. Base model, rank and alpha are said anyway.
        device: Where to compute.
        progress: Is told of each layer.

    Returns:
        What was written, and what differs but was left out, such as biases and embeddings.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        TypeError: If an argument is of a wrong type.
        ValueError: If neither rank nor energy is given, an argument has a wrong value, a checkpoint has neither a U-Net
            nor a text encoder or is not whole, the checkpoints are of different structures, nothing differs, or a
            number is not finite. Nothing is written then.
    """
    bound = Bound.given(rank, energy)
    check_format(format)
    check_dtype(dtype)
    _check_parts(parts)
    if norms and format != "kohya":
        raise ValueError(f"norms=True needs format='kohya': the format {format!r} has no tensors for them")
    said = check_metadata(metadata)
    path = check_destination(destination, [base, tuned], format=format)
    tell = progress or no_progress
    left_out: dict[str, str] = {}
    updates: list[LayerPieces] = []
    layers: list[WrittenLayer] = []
    with ExitStack() as stack:
        compared, family = _compare(_open(stack, base), _open(stack, tuned), parts, left_out)
        networks: Networks = {
            each.part: Network(each.tuned.component, each.tuned.layout, _shapes(each.tuned)) for each in compared
        }
        named = layers_of(networks)
        found = [(each, layer) for each in compared for layer in _layers(each.tuned)]
        for done, (each, own) in enumerate(found, start=1):
            update = _update(each, named[each.part, own], bound, norms, device, dtype, left_out)
            if update is not None:
                updates.append(update[0])
                layers.append(update[1])
            tell(done, len(found))
    if not updates:
        raise ValueError(f"{tuned} differs from {base} in no weight that a LoRA changes: nothing was written")
    ranks = {each.rank for each in layers if each.rank is not None}
    dim = next(iter(ranks)) if len(ranks) == 1 else "Dynamic" if ranks else None
    facts = lora_metadata(base_model=family, rank=dim, alpha=dim)
    write_lora(path, updates, networks, format, facts | said)
    return WrittenLora(path, format, tuple(layers), left_out)


def _check_parts(parts: tuple[Part, ...]) -> None:
    if isinstance(parts, str) or not parts or not set(parts) <= set(get_args(Part)):
        raise ValueError(f"parts must be some of {', '.join(get_args(Part))}, in a tuple, got {parts!r}")


def _open(stack: ExitStack, path: Path | str) -> dict[Component, Found]:
    opened = OpenedSources(Path(path))
    stack.callback(opened.close)
    return {each.component: each for each in opened.find()}


def _compare(
    base: Mapping[Component, Found],
    tuned: Mapping[Component, Found],
    parts: tuple[Part, ...],
    left_out: dict[str, str],
) -> tuple[list[_Compared], Family | None]:
    """Pair the networks of the checkpoints."""
    compared: list[_Compared] = []
    for part in parts:
        own, other = ([found[each] for each in COMPONENTS[part] if each in found] for found in (base, tuned))
        if own and other:
            compared.append(_paired(part, own[0], other[0]))
        elif own or other:
            left_out[part] = f"{part} is in one of the checkpoints alone"
    if not compared:
        holds = ("; ".join(", ".join(found) or "no model that is known" for found in (base, tuned))).replace(
            ";", " and", 1
        )
        raise ValueError(f"base and tuned must both have {' or '.join(parts)}; they hold {holds}")
    return compared, family_of(tuned) or family_of(base)


def _paired(part: Part, base: Found, tuned: Found) -> _Compared:
    for found in (base, tuned):
        found.check()
    differing = [
        f"  {key}: {tuple(base.shapes.get(key, ())) or 'missing'}, {tuple(tuned.shapes.get(key, ())) or 'missing'}"
        for key in {**base.shapes, **tuned.shapes}
        if base.shapes.get(key) != tuned.shapes.get(key)
    ]
    if base.component != tuned.component or differing:
        raise ValueError(
            f"base and tuned must be of one structure, got {base.component} and {tuned.component} with "
            f"{len(differing)} weights that differ in shape:\n" + "\n".join(differing[:_SHOWN])
        )
    return _Compared(part, base, tuned)


def _layers(found: Found) -> list[str]:
    """List the layers, in the order in which their weights are in the file."""
    keys = sorted(found.recipes, key=lambda key: found.source.place(found.recipes[key].key))
    return list(dict.fromkeys(key.rpartition(".")[0] for key in keys))


def _shapes(found: Found) -> dict[str, Size]:
    shapes = found.shapes
    return {key.removesuffix(".weight"): shape for key, shape in shapes.items() if key.endswith(".weight")}


def _update(
    each: _Compared,
    layer: Layer,
    bound: Bound,
    norms: bool,
    device: Device | str,
    dtype: DType | None,
    left_out: dict[str, str],
) -> tuple[LayerPieces, WrittenLayer] | None:
    """Make the update of a layer, if it differs, and list what differs and is no part of it."""
    keys = {kind: f"{layer.path}.{kind}" for kind in ("weight", "bias")}
    deltas = {kind: each.difference(key, device) for kind, key in keys.items() if key in each.tuned.recipes}
    changed = {kind: delta for kind, delta in deltas.items() if delta is not None}
    class_name = layer.path.rpartition(".")[2].partition("_")[0]
    own = dtype or widest(each.tuned.source.infos[each.tuned.recipes[keys[kind]].key].dtype for kind in changed)
    if norms and class_name in _NORMS and changed:
        tensors: dict[Role, Tensor] = {_NORM_ROLES[kind]: delta for kind, delta in changed.items()}
        pieces = LayerPieces(layer, "norm difference", rounded_pieces(layer, tensors, own))
        return pieces, WrittenLayer(str(layer), pieces.title)
    weight = changed.pop("weight", None) if class_name in _PAIRS else None
    for kind in changed:
        left_out[f"{layer}.{kind}"] = _reason(class_name, kind)
    if weight is None:
        return None
    pair = truncate(weight.flatten(1), bound)
    pieces = pair_pieces(layer, pair, tuple(weight.shape[2:]), own)
    return pieces, WrittenLayer(str(layer), pieces.title, pieces.rank, pair.kept)


def _reason(class_name: str, kind: str) -> str:
    if class_name in _NORMS:
        return "differences of norms: norms=True writes them"
    return "differences of biases" if class_name in _PAIRS else "differences of embeddings"
