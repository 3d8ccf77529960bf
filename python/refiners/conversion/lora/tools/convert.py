"""A LoRA file written in another format, with the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from refiners.conversion.lora.metadata import check_metadata, without_stale
from refiners.conversion.lora.names import UNUSED
from refiners.conversion.lora.spelling import LoraFormat
from refiners.conversion.lora.tools.opened import networks_of, open_lora
from refiners.conversion.lora.tools.written import WrittenLayer, WrittenLora, check_kinds, why_unfit
from refiners.conversion.lora.writing import LayerPieces, check_destination, check_format, fit_pieces, write_lora
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel


def convert_lora(
    source: Path | str,
    destination: Path | str,
    *,
    format: LoraFormat,
    model: LatentDiffusionModel | None = None,
    checkpoint: Path | str | None = None,
    partial: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> WrittenLora:
    """Write a LoRA file in another format: the same numbers bit for bit, with the same multipliers.

    One tensor at a time is in memory. Texts that the source says of itself are kept, but for hashes.

    Args:
        source: The file, of any format that `inspect_lora` knows, or a folder of PEFT.
        destination: The file to write, of safetensors; for PEFT a folder, new or one that it wrote.
        format: Who is to read it. `"kohya"`, with which go the files of LyCORIS, has tensors for pairs of matrices
            (LoRA, LoCon), DoRA, LoHa, LoKr, differences, and IA³ as LyCORIS has it. `"diffusers"` has them for pairs
            without a core, and for DoRA by rows; multipliers are in the metadata, as diffusers writes them.
            `"refiners"` has them for pairs without a core. `"peft"` has what `"diffusers"` has, as a folder for one
            network.
        model: The model that the file is for (default: the published one whose layers it names).
        checkpoint: A checkpoint of that model, of which only headers are read, in place of the model.
        partial: Whether to leave out what is not understood, or what the format has no tensors for.
        metadata: Texts to save with the tensors, beside those of the source; see `lora_metadata`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument has a wrong value, the source is no LoRA, something in it is not understood, or the
            format has no tensors for a kind of update, which is named. Nothing is written then.
    """
    check_format(format)
    said = check_metadata(metadata)
    path = check_destination(destination, [source], format=format)
    with open_lora(source, networks_of(model, checkpoint)) as opened:
        left_out = dict.fromkeys(opened.plan.left_over, "no tensor of an update that is known")
        left_out |= {each.name: each.reason for each in opened.plan.updates if each.name not in opened.layers}
        if not partial:
            opened.check("\n(partial=True writes the rest)")
        updates: list[LayerPieces] = []
        for update in opened.updates:
            pieces = opened.pieces(update)
            if format == "refiners" and not pieces.layer.path:
                left_out[update.name] = UNUSED
            elif partial and fit_pieces(pieces, format) is None:
                left_out[update.name] = why_unfit([pieces], format)
            else:
                updates.append(pieces)
        check_kinds(updates, format, opened.plan.label)
        if not updates:
            raise ValueError(f"{opened.plan.label}: no update would be written")
        write_lora(path, updates, opened.networks, format, without_stale(opened.source.metadata) | said)
    layers = (WrittenLayer(str(each.layer), each.title, each.rank) for each in updates)
    return WrittenLora(path, format, tuple(layers), left_out)
