"""Write a safetensors file, of which one tensor at a time is in memory: whole, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Size, Tensor, dtype as DType

from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.safetensors_file import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes, of the first tensor


@dataclass(frozen=True)
class Piece:
    """A tensor that is made when its turn to be written comes.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        make: Makes it; it may come in another shape of as many elements.
    """

    shape: Size
    dtype: DType
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Piece:
        """Write a tensor that is in memory."""
        return cls(tensor.shape, tensor.dtype, tensor.detach)

    @classmethod
    def read(cls, source: TensorSource, key: str) -> Piece:
        """Write a tensor of another file, bit for bit."""
        info = source.infos[key]
        return cls(info.shape, info.dtype, partial(source.read, key))

    def view(self, *shape: int) -> Piece:
        """Write it in another shape of as many elements."""
        return Piece(torch.empty(self.shape, device="meta").view(*shape).shape, self.dtype, self.make)


def write_safetensors(path: Path | str, pieces: Mapping[str, Piece], metadata: Mapping[str, str]) -> None:
    """Write tensors to a file, by a temporary one next to it: what has the name now is replaced at the end.

    Args:
        path: The file.
        pieces: The tensors, by their keys.
        metadata: Texts to save with them.

    Raises:
        OSError: If it cannot be written.
        TypeError: If the format has no name for a dtype, or a text is none.
        ValueError: If a piece makes another tensor than it says.
    """
    # As the reference implementation does: the widest first, so that each begins at a multiple of its size.
    order = sorted(pieces, key=lambda key: (-pieces[key].dtype.itemsize, key))
    header = _header(order, pieces, metadata)
    path = Path(path).resolve()  # a link keeps pointing to what it points to
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            for key in order:
                _write(file, key, pieces[key])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(order: list[str], pieces: Mapping[str, Piece], metadata: Mapping[str, str]) -> bytes:
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"metadata must map texts to texts, got {text!r} for {key!r}")
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in order:
        piece = pieces[key]
        if piece.dtype not in _NAMES:
            raise TypeError(f"{key!r} is of {piece.dtype}, expected one of {', '.join(map(str, _NAMES))}")
        begin, end = end, end + piece.shape.numel() * piece.dtype.itemsize
        entries[key] = {"dtype": _NAMES[piece.dtype], "shape": list(piece.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, key: str, piece: Piece) -> None:
    tensor = piece.make().contiguous().cpu()
    if tensor.dtype != piece.dtype or tensor.numel() != piece.shape.numel():
        raise ValueError(
            f"{key!r} must be {tuple(piece.shape)} in {piece.dtype}, got {tuple(tensor.shape)} in {tensor.dtype}"
        )
    if tensor.numel() > 0:
        file.write(memoryview(cast(Any, tensor.view(-1).view(torch.uint8).numpy())))
