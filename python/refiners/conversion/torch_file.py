"""Read tensors of a file written by `torch.save`, without running anything that is in it."""

from __future__ import annotations

import errno
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, device as Device, dtype as DType

from refiners.conversion.tensor_info import TensorInfo
from refiners.fluxion.printable import printable

# Where trainers put the weights among the state of optimizers and counters.
_NESTS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")


class _Inert:
    """Stands for an object of a class that is not plain data: it keeps nothing and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


class TorchFile:
    """The tensors of a file written by `torch.save`. They are mapped, not read, where the file's format permits.

    Objects that are no plain data, such as the callbacks that trainers save with the weights, are neither imported nor
    created: inert ones take their places.

    Attributes:
        path: Where it is.
        infos: The shape and dtype of each tensor, by its key.
        metadata: Empty; see `SafetensorsFile`.

    Raises:
        ValueError: If the file is not of this format, or holds no tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            found = _tensors_of(_load(path), "")
        except RecursionError as error:
            raise ValueError(f"{path} holds a dictionary that holds itself") from error
        self._tensors = dict(found)
        if not found:
            raise ValueError(f"{path} holds no tensors")
        if len(self._tensors) < len(found):
            twice = Counter(key for key, _ in found).most_common(1)[0][0]
            raise ValueError(f"{path} holds {printable(twice)} twice: once by its whole name, once nested")
        size = path.stat().st_size
        for key, tensor in found:
            if tensor.layout != torch.strided:
                layout = str(tensor.layout).removeprefix("torch.")
                raise ValueError(f"{path}: {printable(key)} is no dense tensor but {layout}")
            if tensor.is_meta:
                raise ValueError(f"{path}: {printable(key)} has no values: it was saved from the device meta")
            if tensor.nbytes > size:  # one number that stands for many could fill any memory
                raise ValueError(f"{path}: {printable(key)} has {tensor.nbytes} bytes, the whole file has {size}")
        self.infos = {key: TensorInfo(tensor.shape, tensor.dtype) for key, tensor in self._tensors.items()}
        self._order = {key: i for i, key in enumerate(self._tensors)}

    def close(self) -> None:
        """Let the file go."""
        self._tensors = {}

    def place(self, key: str) -> int:
        """Return the place of a tensor among the others."""
        return self._order[key]

    def read(self, key: str, device: Device, dtype: DType | None, rows: tuple[int, int] | None) -> Tensor:
        """Copy a tensor, or a range of its rows, in a dtype and to a device. See `Checkpoint.read`."""
        tensor = self.view(key)
        if rows is not None:
            tensor = tensor[rows[0] : rows[1]]
        return tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)

    def view(self, key: str) -> Tensor:
        """Return a tensor whose memory is that of the file, if it is mapped."""
        return self._tensors[key]


def _load(path: Path) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_compressed(path):  # torch maps tensors as they are, and a small file could be a huge one
        raise ValueError(f"{path} is compressed, and torch.save compresses nothing: save it again")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        inert: list[Any] = [(type(_Inert.__name__, (_Inert,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(inert):
            return torch.load(path, mmap=is_zip, **options)
    except Exception as error:  # a damaged pickle may fail in any way; what torch advises runs what is in the file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # the file, and not what it says of places
            raise
        raise ValueError(f"{path} is not a file of tensors that torch.save wrote") from error


def _is_compressed(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any(each.compress_type != zipfile.ZIP_STORED for each in file.infolist())
    except Exception:  # damaged: torch says so
        return False


def _tensors_of(content: Any, prefix: str) -> list[tuple[str, Tensor]]:
    """List the tensors in nested dictionaries with dotted keys; only the weights, where the file keeps them apart."""
    if not isinstance(content, Mapping):
        return []
    mapping = cast("Mapping[object, Any]", content)
    if not prefix:
        for nest in _NESTS:
            if isinstance(mapping.get(nest), Mapping):
                return _tensors_of(mapping[nest], "")
    found: list[tuple[str, Tensor]] = []
    for key, value in mapping.items():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{key}", value.detach()))
        else:
            found += _tensors_of(value, f"{prefix}{key}.")
    return found
