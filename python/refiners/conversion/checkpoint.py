"""Files of weights, of which one tensor at a time is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Size, Tensor, device as Device, dtype as DType

from refiners.conversion.folder import SAFETENSORS, weight_files
from refiners.conversion.safetensors_file import SafetensorsFile
from refiners.conversion.tensor_info import TensorInfo
from refiners.conversion.torch_file import TorchFile

if TYPE_CHECKING:
    from typing_extensions import Self


class TensorSource(Protocol):
    """Tensors that can be read by their keys: a `Checkpoint`, several joined, or a state dict."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...

    @property
    def label(self) -> str: ...

    def place(self, key: str) -> tuple[int, int]: ...

    def read(
        self,
        key: str,
        device: Device | str = "cpu",
        dtype: DType | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor: ...

    def view(self, key: str) -> Tensor: ...


class Checkpoint:
    """The weights of a model in a file or folder, opened without reading a tensor.

    It is a context manager, which closes the files at its end.

    Args:
        path: A safetensors file, a file written by `torch.save`, an index of shards, or the folder of one model as
            diffusers and transformers save it.
        variant: Which of the variants of a folder is meant, as `fp16` in `model.fp16.safetensors`. By default, the file
            without a variant; where there is none, `fp16`, then `bf16`, then the only other one.

    Attributes:
        path: The path that was given.
        files: The files that are open.

    Raises:
        FileNotFoundError: If there is nothing at the path, or a shard is missing.
        ValueError: If what is there is not of these formats, is cut off, or has a key twice.
    """

    def __init__(self, path: Path | str, variant: str | None = None) -> None:
        self.path = Path(path)
        self.files = weight_files(self.path, variant)
        self._files: list[SafetensorsFile | TorchFile] = []
        self._file_of: dict[str, int] = {}
        self._infos: dict[str, TensorInfo] = {}
        try:
            for index, file in enumerate(self.files):
                opened = SafetensorsFile(file) if file.suffix in SAFETENSORS else TorchFile(file)
                self._files.append(opened)
                for key, info in opened.infos.items():
                    if key in self._infos:
                        raise ValueError(f"{self.path} has the key {key!r} twice, the second time in {file.name}")
                    self._infos[key] = info
                    self._file_of[key] = index
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self)} tensors)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; tensors that were read stay."""
        for file in self._files:
            file.close()

    @property
    def label(self) -> str:
        """How errors name it."""
        return str(self.path)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """The shape and dtype of each tensor, by its key."""
        return MappingProxyType(self._infos)

    @property
    def shapes(self) -> dict[str, Size]:
        """The shape of each tensor, by its key."""
        return {key: info.shape for key, info in self._infos.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """The texts that were saved with the tensors."""
        return {key: text for file in self._files for key, text in file.metadata.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, key: object) -> bool:
        return key in self._infos

    def place(self, key: str) -> tuple[int, int]:
        """Return where a tensor is: read in this order, files are read from their beginnings to their ends."""
        index = self._index_of(key)
        return index, self._files[index].place(key)

    def _index_of(self, key: str) -> int:
        if key not in self._file_of:
            raise KeyError(f"{self.path} has no tensor {key!r}")
        return self._file_of[key]

    def read(
        self,
        key: str,
        device: Device | str = "cpu",
        dtype: DType | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Read one tensor into memory of its own.

        Args:
            key: Which.
            device: Where to.
            dtype: In which dtype (default: that of the file).
            rows: The first row to read, and the one after the last (default: all).

        Raises:
            KeyError: If there is no tensor of this key.
            ValueError: If there are no such rows.
        """
        file = self._files[self._index_of(key)]
        shape = self._infos[key].shape
        if rows is not None and not (len(shape) > 0 and 0 <= rows[0] <= rows[1] <= shape[0]):
            raise ValueError(f"rows must be a range within those of {key!r} of shape {tuple(shape)}, got {rows}")
        return file.read(key, torch.device(device), dtype, rows)

    def view(self, key: str) -> Tensor:
        """Return one tensor on the memory of its file: it takes none of its own, and is read when it is used."""
        return self._files[self._index_of(key)].view(key)


class StateDict:
    """A state dict in memory, read as a `Checkpoint` is."""

    label = "the state dict"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"source must hold tensors, got {type(tensor).__name__} for {key!r}")
        self._tensors = tensors
        self._order = {key: i for i, key in enumerate(tensors)}
        self.infos = {key: TensorInfo(tensor.shape, tensor.dtype) for key, tensor in tensors.items()}

    def place(self, key: str) -> tuple[int, int]:
        return 0, self._order[key]

    def read(
        self,
        key: str,
        device: Device | str = "cpu",
        dtype: DType | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        tensor = self._tensors[key].detach()
        if rows is not None:
            tensor = tensor[rows[0] : rows[1]]
        return tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)

    def view(self, key: str) -> Tensor:
        return self._tensors[key].detach()


class JoinedSource:
    """Several sources as one, the keys of each below a prefix: the two text encoders of Stable Diffusion XL."""

    def __init__(self, sources: Mapping[str, TensorSource]) -> None:
        self._sources = sources
        self._origin = {f"{prefix}{key}": (prefix, key) for prefix, source in sources.items() for key in source.infos}
        self.infos = {joined: sources[prefix].infos[key] for joined, (prefix, key) in self._origin.items()}
        self._order = {prefix: i for i, prefix in enumerate(sources)}

    @property
    def label(self) -> str:
        return " and ".join(source.label for source in self._sources.values())

    def place(self, key: str) -> tuple[int, int]:
        prefix, inner = self._origin[key]
        file, place = self._sources[prefix].place(inner)
        return self._order[prefix] * 10_000 + file, place

    def read(
        self,
        key: str,
        device: Device | str = "cpu",
        dtype: DType | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        prefix, inner = self._origin[key]
        return self._sources[prefix].read(inner, device, dtype, rows)

    def view(self, key: str) -> Tensor:
        prefix, inner = self._origin[key]
        return self._sources[prefix].view(inner)
