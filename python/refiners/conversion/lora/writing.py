"""Updates of layers written to a file in a format, one tensor at a time."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Size

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.kinds.decomposed import is_of_inputs
from refiners.conversion.lora.names import Networks
from refiners.conversion.lora.settings import METADATA
from refiners.conversion.lora.spelling import ENDINGS, Layer, LoraFormat, spell_layers
from refiners.conversion.safetensors_writer import Piece, write_safetensors


@dataclass(frozen=True)
class LayerPieces:
    """The update of a layer, to be written.

    Attributes:
        layer: The layer.
        title: What its kind is called.
        pieces: Its tensors by what they are for, with alpha and scalar if a file has them.
        rank: The inner dimension by which alpha is divided, if there is one.
        scale: What the product of its matrices is multiplied by: alpha / rank, times the scalar.
    """

    layer: Layer
    title: str
    pieces: Mapping[Role, Piece]
    rank: int | None = None
    scale: float = 1.0

    @property
    def alpha(self) -> float | None:
        """The alpha that says the scale alone."""
        return None if self.rank is None else torch.tensor(self.scale * self.rank, device="cpu").item()


def check_format(format: str) -> None:
    """Raise `ValueError` if there is no such format."""
    if format not in get_args(LoraFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(LoraFormat))}, got {format!r}")


def check_destination(path: Path | str, sources: Iterable[Path | str] = (), name: str = "destination") -> Path:
    """Give the path of a file to write.

    Raises:
        ValueError: If it ends in something else than `.safetensors`, its folder is missing, it is a folder, or one of
            the sources.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{name} must end in .safetensors, got {str(path)!r}")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"{name} must be a file in a folder that exists, got {str(path)!r}")
    if path.resolve() in {Path(each).resolve() for each in sources}:
        raise ValueError(f"{name} must be another file than what is read, got {str(path)!r}")
    return path


def write_lora(
    path: Path | str,
    updates: Sequence[LayerPieces],
    networks: Networks,
    format: LoraFormat,
    metadata: Mapping[str, str],
) -> None:
    """Write updates to a file, whole or not at all.

    Args:
        path: The file.
        updates: The updates, one for each layer; each can be carried by the format, see `fit_pieces`.
        networks: The networks that the layers are of.
        format: Who is to read the file.
        metadata: Texts to save with the tensors.
    """
    names = spell_layers([each.layer for each in updates], networks, format)
    pieces: dict[str, Piece] = {}
    for name, update in zip(names, updates, strict=True):
        fitted = fit_pieces(update, format)
        assert fitted is not None
        pieces |= {f"{name}.{ENDINGS[format][role]}": piece for role, piece in fitted.items()}
    said = {"format": "pt"}
    if format == "diffusers" and (settings := _peft_settings(updates)):
        said[METADATA] = json.dumps(settings)
    write_safetensors(path, pieces, said | dict(metadata))


def fit_pieces(update: LayerPieces, format: LoraFormat) -> dict[Role, Piece] | None:
    """Give the tensors that a format has for an update, bit for bit; `None` if it has none for its kind."""
    pieces = _shaped(update)
    numbers = {role: pieces.pop(role) for role in ("alpha", "scalar") if role in pieces}
    if "magnitude" in pieces and format == "kohya":
        pieces["dora_scale"] = pieces.pop("magnitude").view(-1, *[1] * (3 if update.layer.is_convolution else 1))
    if "dora_scale" in pieces and format == "diffusers" and _has_rows(pieces):
        shape = (1, -1, 1, 1) if update.layer.is_convolution else (-1,)
        pieces["magnitude"] = pieces.pop("dora_scale").view(*shape)
    if not pieces.keys() <= ENDINGS[format].keys() or (format == "refiners" and not update.layer.path):
        return None
    if format == "diffusers" and "up" in pieces and pieces["up"].shape[2:] not in ((), (1, 1)):
        return None  # PEFT has convolutions whose second one is of 1×1 alone
    return pieces | _numbers(update, numbers, format)


def _shaped(update: LayerPieces) -> dict[Role, Piece]:
    """Give the matrices of a linear layer two dimensions, and those of a convolution four: files have either."""
    pieces = dict(update.pieces)
    for role in ("down", "up") if update.layer.path and "mid" not in pieces else ():
        if role in pieces:
            shape = pieces[role].shape
            sizes = shape[:2] if shape[2:] in ((), (1, 1)) else shape
            ones = (1, 1) if update.layer.is_convolution and len(sizes) == 2 else ()
            pieces[role] = pieces[role].view(*sizes, *ones)
    return pieces


def _has_rows(pieces: Mapping[Role, Piece]) -> bool:
    """Whether magnitudes are those of the rows of the weight, where they are of a pair of matrices."""
    if "down" not in pieces or "up" not in pieces:
        return False
    weight = Size((pieces["up"].shape[0], pieces["down"].shape[1]))
    return is_of_inputs({"dora_scale": pieces["dora_scale"].shape}, weight) is False


def _numbers(update: LayerPieces, numbers: Mapping[Role, Piece], format: LoraFormat) -> dict[Role, Piece]:
    """Give alpha, and what else multiplies: as the file has them, or in one number where a format has one alone."""
    if format == "diffusers":
        return {}  # these are in its metadata
    is_kohya = format == "kohya" and ("alpha" in numbers or update.alpha is None)
    if is_kohya or list(numbers) == ["alpha"]:
        return dict(numbers)
    if update.alpha is None or (format == "refiners" and update.scale == 1):
        return {}
    return {"alpha": Piece.of(torch.tensor(update.alpha, device="cpu"))}


def _peft_settings(updates: Iterable[LayerPieces]) -> dict[str, Any]:
    """Say alphas as diffusers does, the configuration of PEFT for each network, if they are not what it expects.

    It expects that all ranks of a network are the same, and that alpha is the rank.
    """
    by_network: defaultdict[str, list[LayerPieces]] = defaultdict(list)
    for update in updates:
        by_network[update.layer.network].append(update)
    said: dict[str, Any] = {}
    is_expected = True
    for network, group in by_network.items():
        # Versions of transformers differ in whether this is a part of the names; PEFT compares ends of names.
        names = [each.layer.name.removeprefix("text_model.") for each in group]
        ranks = {name: each.rank for name, each in zip(names, group)}
        alphas = {name: _plain(each.alpha) for name, each in zip(names, group)}
        rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
        is_expected &= set(ranks.values()) == set(alphas.values()) == {rank}
        config = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
            "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
            "target_modules": sorted(ranks),
            "use_dora": any("magnitude" in each.pieces or "dora_scale" in each.pieces for each in group),
        }
        said |= {f"{network}.{key}": value for key, value in config.items()}
    return {} if is_expected else said


def _plain(number: float | None) -> float | int | None:
    return int(number) if number is not None and number.is_integer() else number
