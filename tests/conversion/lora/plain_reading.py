"""Read a file of safetensors by its specification alone, in the plainest way."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class NotPlain(Exception):
    """Says why a file is none of the format."""


def read_plainly(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the tensors of a file, and what else it says.

    Raises:
        NotPlain: If it is not of the format.
    """
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length], object_pairs_hook=_without_duplicates)
    said = header.pop("__metadata__", {})
    if not (isinstance(said, dict) and all(isinstance(text, str) for text in said.values())):
        raise NotPlain("the metadata are no texts")
    data = content[8 + length :]
    tensors: dict[str, Tensor] = {}
    for key, entry in header.items():
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not 0 <= begin <= end <= len(data):
            raise NotPlain(f"{key} is not within the file")
        if end - begin != math.prod(shape) * dtype.itemsize or any(size < 0 for size in shape):
            raise NotPlain(f"{key} has a size that is not that of its shape")
        flat = torch.empty(0, dtype=dtype)
        if end > begin:
            flat = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype)
        tensors[key] = flat.view(shape)
    places = sorted(place for entry in header.values() if (place := entry["data_offsets"])[0] < place[1])
    if any(following[0] < place[1] for place, following in pairwise(places)):
        raise NotPlain("tensors overlap")
    return tensors, said


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise NotPlain("a key is there twice")
    return dict(pairs)
