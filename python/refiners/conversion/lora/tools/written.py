"""What was written, and how tensors that were computed get into a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, dtype as DType

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.spelling import Layer, LoraFormat
from refiners.conversion.lora.tools.low_rank import Truncated
from refiners.conversion.lora.writing import LayerPieces, fit_pieces
from refiners.conversion.safetensors_writer import Piece

Progress: TypeAlias = Callable[[int, int], object]
"""Is told after each layer how many are done, and how many there are."""


@dataclass(frozen=True)
class WrittenLayer:
    """The update of a layer in a file that was written.

    Attributes:
        name: The layer, as diffusers calls it.
        kind: What its kind is called.
        rank: Its rank, if it has one.
        kept: The share of the energy, the sum of the squares, of what it was made of; `None` if it was copied.
    """

    name: str
    kind: str
    rank: int | None = None
    kept: float | None = None


@dataclass(frozen=True)
class WrittenLora:
    """A file that was written.

    Attributes:
        path: The file.
        format: Who reads it.
        layers: The updates in it.
        left_out: What is not in it, and why.
    """

    path: Path
    format: LoraFormat
    layers: tuple[WrittenLayer, ...] = field(repr=False)
    left_out: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(each.kind for each in self.layers).items())
        text = f"{self.path}: {kinds} in the format {self.format}"
        ranks = sorted({each.rank for each in self.layers if each.rank is not None})
        if ranks:
            text += f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
        shares = [each.kept for each in self.layers if each.kept is not None]
        if shares:
            text += f", {100 * sum(shares) / len(shares):.1f} % of the energy kept ({100 * min(shares):.1f} at least)"
        for reason, count in Counter(self.left_out.values()).items():
            text += f"\nleft out, {count}: {reason}"
        return text


def pair_pieces(layer: Layer, pair: Truncated, kernel: Sequence[int], dtype: DType) -> LayerPieces:
    """Give a pair of matrices as the update of a layer, rounded once.

    Args:
        layer: The layer.
        pair: The matrices.
        kernel: Height and width of a convolution, in the columns of `down`; nothing for a linear layer.
        dtype: The dtype of the file.

    Raises:
        ValueError: If a number is too large for the dtype.
    """
    rank = pair.down.shape[0]
    ones = [1] * len(kernel)
    tensors = {"down": pair.down.reshape(rank, -1, *kernel), "up": pair.up.reshape(-1, rank, *ones)}
    return LayerPieces(layer, "LoCon" if kernel else "LoRA", rounded_pieces(layer, tensors, dtype), rank)


def rounded_pieces(layer: Layer | str, tensors: Mapping[Role, Tensor], dtype: DType) -> dict[Role, Piece]:
    """Round tensors to the dtype of a file.

    Raises:
        ValueError: If a number is too large for it.
    """
    pieces: dict[Role, Piece] = {}
    for role, tensor in tensors.items():
        rounded = tensor.to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ValueError(f"{layer}: {role} has numbers that are too large for {dtype}")
        pieces[role] = Piece.of(rounded.cpu().contiguous())
    return pieces


def check_kinds(updates: Sequence[LayerPieces], format: LoraFormat, label: str) -> None:
    """Raise `ValueError` if a format has no tensors for some updates, and name their kinds."""
    unfit = [each for each in updates if fit_pieces(each, format) is None]
    if unfit:
        raise ValueError(f"{label}: {why_unfit(unfit, format)}; such as {unfit[0].layer}")


def why_unfit(unfit: Sequence[LayerPieces], format: LoraFormat) -> str:
    """Say for which kinds of updates a format has no tensors."""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(each.title for each in unfit).items())
    return f"the format {format!r} has no tensors for {kinds}"


def check_dtype(dtype: DType | None) -> None:
    """Raise if this is no dtype that matrices of a file can have."""
    if dtype is None:
        return
    if not isinstance(dtype, DType):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")


_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""
