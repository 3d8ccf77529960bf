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
from refiners.conversion.lora.peft_folder import check_peft_folder, write_peft_folder
from refiners.conversion.lora.settings import METADATA
from refiners.conversion.lora.spelling import ENDINGS, Layer, LoraFormat, spell_layers
from refiners.conversion.safetensors_writer import Piece, write_safetensors

_OF_PEFT = ("diffusers", "peft")  # formats with the tensors that PEFT has


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


def check_destination(
    path: Path | str, sources: Iterable[Path | str] = (), name: str = "destination", format: LoraFormat = "kohya"
) -> Path:
    """Give the path of a file to write, or of a folder for PEFT.

    Raises:
        ValueError: If it ends in something else than `.safetensors`, its folder is missing, it is a folder, or one of
            the sources; see `check_peft_folder` for those of PEFT.
    """
    path = Path(path)
    if format == "peft":
        check_peft_folder(path, name)
    elif path.suffix != ".safetensors":
        raise ValueError(f"{name} must end in .safetensors, got {str(path)!r}")
    elif path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"{name} must be a file in a folder that exists, got {str(path)!r}")
    read = [Path(each).resolve() for each in sources]
    if path.resolve() in (read if format != "peft" else [*read, *(each.parent for each in read)]):
        raise ValueError(f"{name} must be another file than what is read, got {str(path)!r}")
    return path


def write_lora(
    path: Path | str,
    updates: Sequence[LayerPieces],
    networks: Networks,
    format: LoraFormat,
    metadata: Mapping[str, str],
) -> None:
    """Write updates to a file, or to a folder for PEFT, whole or not at all.

    Args:
        path: The file.
        updates: The updates, one for each layer; each can be carried by the format, see `fit_pieces`.
        networks: The networks that the layers are of.
        format: Who is to read the file.
        metadata: Texts to save with the tensors.

    Raises:
        ValueError: If one configuration of PEFT cannot say what the updates are.
    """
    if format == "peft":
        check_is_one_configuration(updates)
    names = spell_layers([each.layer for each in updates], networks, format)
    pieces: dict[str, Piece] = {}
    for name, update in zip(names, updates, strict=True):
        fitted = fit_pieces(update, format)
        assert fitted is not None
        pieces |= {f"{name}.{ENDINGS[format][role]}": piece for role, piece in fitted.items()}
    said = {"format": "pt"}
    if format == "peft":
        config = _peft_config(updates)
        write_peft_folder(path, pieces, config, said | dict(metadata))
        return
    if format == "diffusers" and (settings := _peft_settings(updates)):
        said[METADATA] = json.dumps(settings)
    write_safetensors(path, pieces, said | dict(metadata))


def fit_pieces(update: LayerPieces, format: LoraFormat) -> dict[Role, Piece] | None:
    """Give the tensors that a format has for an update, bit for bit; `None` if it has none for its kind."""
    pieces = _shaped(update)
    numbers = {role: pieces.pop(role) for role in ("alpha", "scalar") if role in pieces}
    if "magnitude" in pieces and format == "kohya":
        pieces["dora_scale"] = pieces.pop("magnitude").view(-1, *[1] * (3 if update.layer.is_convolution else 1))
    if "dora_scale" in pieces and format in _OF_PEFT and _has_rows(pieces):
        shape = (1, -1, 1, 1) if update.layer.is_convolution else (-1,)
        pieces["magnitude"] = pieces.pop("dora_scale").view(*shape)
    if not pieces.keys() <= ENDINGS[format].keys() or (format == "refiners" and not update.layer.path):
        return None
    if format in _OF_PEFT and "up" in pieces and pieces["up"].shape[2:] not in ((), (1, 1)):
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
    if format in _OF_PEFT:
        return {}  # these are in its metadata, or in a configuration
    is_kohya = format == "kohya" and ("alpha" in numbers or update.alpha is None)
    if is_kohya or list(numbers) == ["alpha"]:
        return dict(numbers)
    if update.alpha is None or (format == "refiners" and update.scale == 1):
        return {}
    return {"alpha": Piece.of(torch.tensor(update.alpha, device="cpu"))}


def check_is_one_configuration(updates: Iterable[LayerPieces]) -> None:
    """Raise `ValueError` if updates are of several networks, or some of them have magnitudes and others none."""
    updates = list(updates)
    networks = sorted({each.layer.network for each in updates})
    if len(networks) > 1:
        raise ValueError(f"a folder of PEFT is for one network, and there are updates of {', '.join(networks)}")
    decomposed = [each for each in updates if _has_magnitudes(each)]
    if decomposed and len(decomposed) < len(updates):
        other = next(each for each in updates if not _has_magnitudes(each))
        raise ValueError(
            f"in a folder of PEFT all updates have magnitudes or none, and {decomposed[0].layer} has some, but not"
            f" {other.layer}"
        )


def _peft_settings(updates: Iterable[LayerPieces]) -> dict[str, Any]:
    """Say alphas as diffusers does, the configuration of PEFT for each network, if they are not what it expects.

    It expects that all ranks of a network are the same, and that alpha is the rank.
    """
    by_network: defaultdict[str, list[LayerPieces]] = defaultdict(list)
    for update in updates:
        by_network[update.layer.network].append(update)
    configs = {network: _peft_config(group) for network, group in by_network.items()}
    is_expected = all(
        config["r"] == config["lora_alpha"] and not config["rank_pattern"] and not config["alpha_pattern"]
        for config in configs.values()
    )
    said = {f"{network}.{key}": value for network, config in configs.items() for key, value in config.items()}
    return {} if is_expected else said


def _peft_config(updates: Iterable[LayerPieces]) -> dict[str, Any]:
    """Say ranks and alphas as PEFT does: those that most layers of a network have, and those of others."""
    # Versions of transformers differ in whether this is a part of the names; PEFT compares ends of names.
    group = {each.layer.name.removeprefix("text_model."): each for each in updates}
    ranks = {name: each.rank for name, each in group.items()}
    alphas = {name: _plain(each.alpha) for name, each in group.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
        "target_modules": sorted(ranks),
        "use_dora": any(_has_magnitudes(each) for each in group.values()),
    }


def _has_magnitudes(update: LayerPieces) -> bool:
    return "magnitude" in update.pieces or "dora_scale" in update.pieces


def _plain(number: float | None) -> float | int | None:
    return int(number) if number is not None and number.is_integer() else number
