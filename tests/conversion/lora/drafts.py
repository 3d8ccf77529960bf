"""A file of safetensors taken apart, to be damaged and written again."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Entry = dict[str, Any]
Mutation = Callable[["Draft", random.Random], "bytes | None"]

SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "F32": 4,
    "I32": 4,
    "F64": 8,
    "I64": 8,
}


def floats(*values: float) -> bytes:
    """Write numbers as the file has them in float32."""
    return struct.pack(f"<{len(values)}f", *values)


class Draft:
    """A file of safetensors, taken apart.

    Attributes:
        entries: The tensors: their keys, and the objects of the header.
        said: The metadata; anything, as a damaged file may have.
        data: The bytes of the tensors.
    """

    def __init__(self, content: bytes) -> None:
        length = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        self.said: Any = header.pop("__metadata__", None)
        self.entries: list[tuple[str, Any]] = list(header.items())
        self.data = bytearray(content[8 + length :])

    def header(self) -> bytes:
        """Write the header; keys may be there twice."""
        pairs = [("__metadata__", self.said)] if self.said is not None else []
        texts = (f"{json.dumps(key)}:{json.dumps(value)}" for key, value in [*pairs, *self.entries])
        return f"{{{','.join(texts)}}}".encode()

    def write(self, header: bytes | None = None, length: int | None = None) -> bytes:
        """Write the file, with another header or length of it."""
        header = self.header() if header is None else header
        return struct.pack("<Q", (len(header) if length is None else length) % 2**64) + header + bytes(self.data)

    def pick(self, rng: random.Random, *endings: str) -> int:
        """Choose a tensor; one whose key ends in some way, where there is one."""
        numbers = range(len(self.entries))
        found = [i for i in numbers if self.entries[i][0].endswith(endings)] if endings else []
        return rng.choice(found or numbers)

    def entry(self, index: int) -> Entry:
        return self.entries[index][1]

    def set(self, index: int, dtype: str, shape: list[int], data: bytes) -> None:
        """Give a tensor another value, at the end of the file; its old bytes stay, as a hole."""
        begin = len(self.data)
        self.data += data
        self.entries[index] = (
            self.entries[index][0],
            {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [begin, begin + len(data)],
            },
        )

    def rename(self, index: int, key: str) -> None:
        self.entries[index] = key, self.entries[index][1]


MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def each_of(name: str, cases: dict[str, Any], make: Callable[[Any], Mutation]) -> None:
    for title, value in cases.items():
        MUTATIONS[f"{name}: {title}"] = make(value)


@mutation
def nothing_at_all(draft: Draft, rng: random.Random) -> None: ...
