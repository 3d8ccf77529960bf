"""A LoRA file of a lower rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import device as Device, dtype as DType

from refiners.conversion.lora.metadata import check_metadata, lora_metadata, without_stale
from refiners.conversion.lora.plan import Update
from refiners.conversion.lora.spelling import LoraFormat
from refiners.conversion.lora.tools.chains import ChainResizer, open_chain_file
from refiners.conversion.lora.tools.deltas import MAGNITUDES, pair_of
from refiners.conversion.lora.tools.low_rank import Bound, truncate_product
from refiners.conversion.lora.tools.opened import OpenedLora, networks_of, open_lora
from refiners.conversion.lora.tools.written import (
    Progress,
    WrittenLayer,
    WrittenLora,
    check_dtype,
    check_kinds,
    no_progress,
    pair_pieces,
)
from refiners.conversion.lora.writing import LayerPieces, check_destination, check_format, write_lora
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel


def resize_lora(
    source: Path | str,
    destination: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    format: LoraFormat = "kohya",
    dtype: DType | None = None,
    model: LatentDiffusionModel | None = None,
    checkpoint: Path | str | None = None,
    metadata: Mapping[str, str] | None = None,
    device: Device | str = "cpu",
    progress: Progress | None = None,
) -> WrittenLora:
    """Write a LoRA file of a lower rank: for each layer the nearest update that has it.

    The product of the two matrices is not made, see `truncate_product`; numbers are in float64 until they are written.
    Differences, and IA³, which have no rank, are copied. Of DoRA the pair of matrices is resized, and its magnitudes
    are copied. Files of `save_loras` keep their keys, of whatever chain they are.

    Args:
        source: The file, of any format that `inspect_lora` knows, or a folder of PEFT.
        destination: The file to write, of safetensors.
        rank: The rank, or with `energy` the largest one. Layers whose rank is lower keep theirs.
        energy: The share of the energy, the sum of the squares of the singular values, to keep of each layer by as low
            a rank as does: 0.95, for example.
        format: Who is to read the file; see `convert_lora`.
        dtype: The dtype of the matrices (default: that of the source).
        model: See `convert_lora`.
        checkpoint: See `convert_lora`.
        metadata: See `convert_lora`.
        device: Where to compute.
        progress: Is told of each layer.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an argument is of a wrong type.
        ValueError: If neither rank nor energy is given, an argument has a wrong value, something in the source is not
            understood, is not finite, or has no rank that could be lower (LoHa, LoKr). Nothing is written then.
    """
    bound = Bound.given(rank, energy)
    check_format(format)
    check_dtype(dtype)
    said = check_metadata(metadata)
    path = check_destination(destination, [source], format=format)
    tell = progress or no_progress
    networks = networks_of(model, checkpoint)
    if networks is None:
        with open_chain_file(source) as opened:
            if opened is not None:
                if format == "diffusers":
                    raise ValueError(f"{source} is a file of save_loras, of which the format {format!r} has no layers")
                return ChainResizer(bound, device, dtype, tell).write(opened, path, said)
    written: list[tuple[LayerPieces, WrittenLayer]] = []
    with open_lora(source, networks) as opened:
        opened.check()
        updates = [each for each in opened.updates if opened.layers[each.name].path or format != "refiners"]
        check_kinds([opened.pieces(each) for each in updates if "mid" not in each.keys], format, opened.plan.label)
        for update in updates:
            if any(role.startswith(("hada_", "lokr_")) for role in update.keys):
                raise ValueError(
                    f"{opened.plan.label}: {update.kind} has no rank that could be lower, such as {update.name}; "
                    "compose_loras makes pairs of matrices of it"
                )
        for done, update in enumerate(updates, start=1):
            written.append(_resized(opened, update, bound, device, dtype or opened.dtype(update)))
            tell(done, len(updates))
        ranks = {each.rank for _, each in written if each.rank is not None}
        dim = next(iter(ranks)) if len(ranks) == 1 else "Dynamic"
        said = without_stale(opened.source.metadata) | (lora_metadata(rank=dim, alpha=dim) if ranks else {}) | said
        write_lora(path, [pieces for pieces, _ in written], opened.networks, format, said)
    return WrittenLora(path, format, tuple(each for _, each in written), {})


def _resized(
    opened: OpenedLora, update: Update, bound: Bound, device: Device | str, dtype: DType
) -> tuple[LayerPieces, WrittenLayer]:
    layer = opened.layers[update.name]
    if "down" not in update.keys:
        pieces = opened.pieces(update)
        return pieces, WrittenLayer(str(layer), update.kind)
    tensors = opened.read(update, device, torch.float64)
    down, up, kernel = pair_of(tensors, update)
    pair = truncate_product(down, up * update.scale, bound)
    pieces = pair_pieces(layer, pair, kernel, dtype)
    copied = {role: piece for role, piece in opened.pieces(update).pieces.items() if role in MAGNITUDES}
    pieces = replace(pieces, title=update.kind, pieces={**pieces.pieces, **copied})
    return pieces, WrittenLayer(str(layer), update.kind, pieces.rank, pair.kept)
