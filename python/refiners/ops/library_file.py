"""What a library file says about its own build, read without loading it."""

from __future__ import annotations

import json
import platform
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

INTERFACE = 5  # of the library's functions and the operators' schemas: raise it when one of them changes
MAGIC = b"REFINERS"
_TAIL = struct.Struct("<I8s")  # checksum of all before this tail, MAGIC
_LENGTH = struct.Struct("<I")  # of the record; it stands between record and tail


class BuildRecord(NamedTuple):
    """How a library was built, as setup.py wrote it behind the linked file."""

    version: str
    interface: int
    machine: str
    python: str
    torch: str
    torch_minimum: str
    compiler: str
    isas: list[str]
    cuda: str | None
    cuda_architectures: list[str]

    def __str__(self) -> str:
        cuda = f"CUDA {self.cuda} for {' '.join(self.cuda_architectures)}" if self.cuda else "no CUDA"
        return (
            f"refiners {self.version} for {self.machine}, built against torch {self.torch} by {self.compiler}, "
            f"Python {self.python}, {cuda}, CPU kernels {' '.join(self.isas) or 'none'}"
        )


class UnusableLibraryError(Exception):
    """A library file that must not be loaded, with the reason."""


def seal(path: Path, record: dict[str, Any]) -> None:
    """Write a record and a checksum behind a linked library."""
    text = json.dumps(record).encode()
    body = path.read_bytes() + text + _LENGTH.pack(len(text))
    path.write_bytes(body + _TAIL.pack(zlib.crc32(body), MAGIC))


def read_record(path: Path) -> BuildRecord:
    """Read the record of a library.

    Raises:
        UnusableLibraryError: If the file is not what setup.py wrote. Loading a damaged file can end the process.
    """
    content = path.read_bytes()
    body, tail = content[: -_TAIL.size], content[-_TAIL.size :]
    if len(body) < _LENGTH.size or not tail.endswith(MAGIC):
        raise UnusableLibraryError("it is damaged or was not built by setup.py: it does not end in a build record")
    if zlib.crc32(body) != _TAIL.unpack(tail)[0]:
        raise UnusableLibraryError("it is damaged: its checksum is wrong")
    (length,) = _LENGTH.unpack(body[-_LENGTH.size :])
    found = json.loads(body[-_LENGTH.size - length : -_LENGTH.size])
    if set(found) != set(BuildRecord._fields):
        raise UnusableLibraryError("it was built by another version of refiners, whose build records differ")
    return BuildRecord(**found)


def check_record(record: BuildRecord) -> None:
    """Raise `UnusableLibraryError` where a library was built for something else than what is running."""
    if record.machine != platform.machine():
        raise UnusableLibraryError(f"it was built for {record.machine}, this machine is {platform.machine()}")
    if record.interface != INTERFACE:
        raise UnusableLibraryError(f"it has interface {record.interface}, this version of refiners needs {INTERFACE}")
    if _release(torch.__version__) < _release(record.torch_minimum):
        raise UnusableLibraryError(f"it needs torch >= {record.torch_minimum}, this is torch {torch.__version__}")


def _release(version: str) -> tuple[int, ...]:
    """Give major and minor number."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
