"""Memory for what is read from files, on huge pages where the system has them.

The first write to each page of new memory stops in the system, which looks for a page and clears it. Reading a model
into pages of 4 KiB takes longer for these stops than for its bytes. Pages of 2 MiB stop five hundred times less often,
and the weights on them are faster to walk through later.
"""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Size, Tensor, dtype as DType

_HUGE = 1 << 21  # bytes of a huge page of the processors that torch has wheels for
_CHUNK = 1 << 24  # bytes that small tensors share
_ALIGNMENT = 64  # bytes; that of torch's own memory
_OPTIONS: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


class Memory:
    """Gives memory to tensors that are read one after the other.

    Each tensor has a storage of its own, no larger than itself. Large ones have a mapping each, small ones share
    mappings of 16 MiB: one is given back to the system when the last of its tensors is gone.
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._begin = self._end = 0

    def take(self, shape: Size, dtype: DType) -> tuple[Tensor, memoryview]:
        """Make a tensor without values, and a view of its bytes."""
        count = shape.numel()
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype, device="cpu"), memoryview(bytearray())
        if size >= _HUGE:
            memory, begin = _map(size, size // _HUGE)
        else:
            begin = -(-self._begin // _ALIGNMENT) * _ALIGNMENT
            if self._chunk is None or begin + size > self._end:
                self._chunk, begin = _map(_CHUNK, _CHUNK // _HUGE - 1)  # what is left at its end is not touched
                self._end = begin + _CHUNK
            memory, self._begin = self._chunk, begin + size
        tensor = torch.frombuffer(memory, dtype=dtype, count=count, offset=begin)
        if len(shape) != 1:
            tensor = tensor.view(*shape) if shape else tensor[0]  # sizes one by one: `Size` takes torch thrice as long
        return tensor, memoryview(memory)[begin : begin + size]


def _map(size: int, huge: int) -> tuple[mmap.mmap, int]:
    """Map new memory; give it, and where in it `size` bytes begin, the first of them on a number of huge pages."""
    memory = mmap.mmap(-1, size + _HUGE, **_OPTIONS)  # untouched pages cost nothing
    begin = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % _HUGE
    if _ADVICE is not None and huge:
        memory.madvise(_ADVICE, begin, huge * _HUGE)
    return memory, begin
