"""Read single tensors of a safetensors file, straight into their memory.

The format is a length, a header of JSON with the dtype, shape and place of each tensor, and their bytes. The header is
all that is read when the file is opened. A tensor is read from the file into its final memory: it is never held twice,
and not one page of the file stays mapped.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Size, Tensor, device as Device, dtype as DType

from refiners.conversion.memory import Memory
from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.printable import printable

_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_CHUNK = 1 << 20  # bytes that are cast at a time: they stay in the caches
_MOST_DIMENSIONS = 64  # that loops of torch have

DTYPES = {
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
"""The names of dtypes in headers."""


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        path: Where it is.
        infos: The shape and dtype of each tensor, by its key.
        metadata: The texts that were saved with the tensors.

    Raises:
        ValueError: If the file is not of this format, or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            header, self._start = self._read_header()
            self.metadata = self._check_metadata(header.pop("__metadata__", None))
            self._places: dict[str, int] = {}
            self.infos: dict[str, TensorInfo] = {}
            size = path.stat().st_size
            for key, entry in header.items():
                self.infos[key], self._places[key] = self._check_entry(key, entry, size)
            self._check_places()
        except BaseException:
            self._file.close()
            raise
        self._memory = Memory()
        self._map: mmap.mmap | None = None
        self._buffer: Tensor | None = None  # one for all casts

    def _read_header(self) -> tuple[dict[str, Any], int]:
        begin = self._file.read(48)
        if begin.startswith(b"version https://git-lfs."):
            raise ValueError(f"{self.path} is a Git LFS pointer, not the file itself: run git lfs pull")
        length = int.from_bytes(begin[:8], "little")
        if not 2 <= length <= _LONGEST_HEADER or length + 8 > self.path.stat().st_size:
            if begin and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in begin):
                text = begin.decode()
                raise ValueError(f"{self.path} is not a safetensors file: it is a text that begins with {text!r}")
            raise ValueError(f"{self.path} is not a safetensors file: its header cannot be {length} bytes long")
        self._file.seek(8)
        try:
            header: Any = json.loads(self._file.read(length), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is not a safetensors file: its header is no JSON ({error})") from error
        if not isinstance(header, Mapping):
            raise ValueError(f"{self.path} is not a safetensors file: its header is no object")
        return dict(cast("Mapping[str, Any]", header)), 8 + length

    def _check_metadata(self, metadata: Any) -> dict[str, str]:
        if metadata is None:
            return {}
        texts = cast("Mapping[str, Any]", metadata) if isinstance(metadata, Mapping) else None
        if texts is None or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{self.path} is not a safetensors file: its metadata must be texts by their names")
        return dict(texts)

    def _check_entry(self, key: str, entry: Any, size: int) -> tuple[TensorInfo, int]:
        try:
            name, shape, (begin, end) = entry["dtype"], _whole_numbers(entry["shape"]), entry["data_offsets"]
            _whole_numbers(entry["data_offsets"])
            if len(shape) > _MOST_DIMENSIONS or not 0 <= min(shape, default=0) <= max(shape, default=0) < 2**63:
                raise ValueError("there are too many sizes, or one is no size")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: the header has no dtype, shape and place of {_quoted(key)}") from error
        dtype = DTYPES.get(name) if isinstance(name, str) else None
        if dtype is None:
            kind = printable(str(name))
            raise ValueError(f"{self.path}: {_quoted(key)} is of the dtype {kind}, expected one of {', '.join(DTYPES)}")
        if not 0 <= begin <= end or end - begin != math.prod(shape) * dtype.itemsize:  # `Size.numel` may overflow
            raise ValueError(f"{self.path}: {_quoted(key)} of shape {tuple(shape)} and {name} has {end - begin} bytes")
        if self._start + end > size:
            raise ValueError(
                f"{self.path} is cut off: {_quoted(key)} ends at byte {self._start + end}, the file at {size}"
            )
        return TensorInfo(Size(shape), dtype), self._start + begin

    def _check_places(self) -> None:
        """Raise if two tensors share bytes: a small file could fill any memory."""
        end, before = 0, ""
        for key, begin in sorted(self._places.items(), key=itemgetter(1)):
            info = self.infos[key]
            size = info.shape.numel() * info.dtype.itemsize
            if size and begin < end:
                raise ValueError(f"{self.path}: {_quoted(key)} overlaps {_quoted(before)}")
            if size:
                end, before = begin + size, key

    def close(self) -> None:
        """Close the file. Tensors that were read stay; views end with the last tensor that uses them."""
        self._file.close()
        self._map = self._buffer = None
        self._memory = Memory()

    def place(self, key: str) -> int:
        """Return where the bytes of a tensor begin: in this order a file is read fastest."""
        return self._places[key]

    def read(self, key: str, device: Device, dtype: DType | None, rows: tuple[int, int] | None) -> Tensor:
        """Read a tensor, or a range of its rows, in a dtype and to a device. See `Checkpoint.read`."""
        info, place = self.infos[key], self._places[key]
        shape = info.shape
        if rows is not None:
            shape = Size((rows[1] - rows[0], *info.shape[1:]))
            place += rows[0] * info.shape[1:].numel() * info.dtype.itemsize
        if dtype is None or dtype == info.dtype or device.type != "cpu":
            tensor, target = self._memory.take(shape, info.dtype)
            self._fill(target, place, key)
            if device.type == "cpu":
                return tensor
            return tensor.to(device).to(dtype)  # what is copied is what the file holds; the device casts it
        tensor, _ = self._memory.take(shape, dtype)
        flat, step = tensor.view(-1), _CHUNK // info.dtype.itemsize
        if self._buffer is None:
            self._buffer = torch.empty(_CHUNK, dtype=torch.uint8, device="cpu")
        buffer, target = self._buffer.view(info.dtype), memoryview(cast(Any, self._buffer.numpy()))
        for begin in range(0, flat.numel(), step):
            count = min(step, flat.numel() - begin)
            self._fill(target[: count * info.dtype.itemsize], place + begin * info.dtype.itemsize, key)
            flat[begin : begin + count].copy_(buffer[:count])
        return tensor

    def _fill(self, target: memoryview, place: int, key: str) -> None:
        if target:
            self._file.seek(place)
        while target:
            count = self._file.readinto(target)
            if not count:
                raise OSError(f"{self.path} ended within {key!r}: it was cut off after it was opened")
            target = target[count:]

    def view(self, key: str) -> Tensor:
        """Return a tensor whose memory is that of the file: it takes none, and is read when it is used."""
        info = self.infos[key]
        if info.shape.numel() == 0:
            return torch.empty(info.shape, dtype=info.dtype, device="cpu")
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)  # writes stay in memory
        if self._places[key] % info.dtype.itemsize:
            return self.read(key, Device("cpu"), None, None)  # not aligned: files of other writers
        return torch.frombuffer(self._map, dtype=info.dtype, count=info.shape.numel(), offset=self._places[key]).view(
            info.shape
        )


def _whole_numbers(value: Any) -> list[int]:
    if type(value) is list:
        for number in cast("list[Any]", value):
            if type(number) is not int:
                break
        else:
            return cast("list[int]", value)
    raise TypeError("no list of whole numbers")


def _quoted(key: str) -> str:
    return f"'{printable(key)}'"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"it has '{printable(twice)}' twice")
    return found
