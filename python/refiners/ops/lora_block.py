"""The blocks of `lora_linear`: weight and updates side by side, kept while their tensors stay as they are."""

from __future__ import annotations

import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, device as Device

from refiners.ops.library import native
from refiners.ops.lora_linear_checks import padded_rank

_SHARE = 4  # the blocks take at most one part in four of the memory of the machine


class _Entry(NamedTuple):
    state: tuple[Any, ...]
    block: Tensor
    storages: list[torch.UntypedStorage]  # held, so that no other tensor comes to lie at the same address
    owners: list[weakref.ref[Tensor]]  # their callbacks drop the entry


class LoraBlockCache:
    """A bounded store of blocks. What does not fit is not kept: turns of eviction would copy every weight each step.

    A block belongs to the very tensors it was made of: it is found while they live and no in-place change, cast or move
    has touched them, and dropped with them. Like autograd it sees changes by their version counters: after writing
    through `.data`, call `clear`.

    Args:
        limit: The bytes it may hold on each device.
    """

    def __init__(self, limit: Callable[[Device], int]) -> None:
        self.limit = limit
        self._entries: dict[tuple[int, ...], _Entry] = {}
        self._bytes: defaultdict[Device, int] = defaultdict(int)
        self._lock = threading.RLock()  # re-entrant: a tensor may be collected, and its entry dropped, at any moment

    @property
    def bytes(self) -> int:
        """The bytes that the blocks take."""
        with self._lock:
            return sum(self._bytes.values())

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drop all blocks."""
        with self._lock:
            self._entries.clear()
            self._bytes.clear()

    def drop(self, weight: Tensor) -> None:
        """Drop the blocks of a weight."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == id(weight)]:
                self._drop(key)

    def get(self, weight: Tensor, ups: Sequence[Tensor]) -> Tensor | None:
        """Give the block of these tensors, made now if need be; None where it would exceed the limit."""
        stream = 0
        if weight.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return None  # a replay would read the block after a change of the weights, or after it was dropped
            stream = torch.cuda.current_stream(weight.device).cuda_stream  # no other waits for what is queued on it
        tensors = (weight, *ups)
        key, state = (*map(id, tensors), stream), tuple(_state(tensor) for tensor in tensors)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.state[0] == state[0] and _layouts(entry.state) == _layouts(state):
                if entry.state != state:  # other values of the same updates: the weight is not copied again
                    write_updates(entry.block, weight.shape[1], ups)
                    storages = [tensor.untyped_storage() for tensor in tensors]
                    self._entries[key] = entry._replace(state=state, storages=storages)
                return entry.block
            self._drop(key)
            size = weight.shape[0] * (weight.shape[1] + padded_rank(ups)) * weight.element_size()
            if self._bytes[weight.device] + size > self.limit(weight.device):
                return None
            block = make_block(weight, ups)
            owners = [weakref.ref(tensor, lambda _: self._drop(key)) for tensor in tensors]
            storages = [tensor.untyped_storage() for tensor in tensors]
            self._entries[key] = _Entry(state, block, storages, owners)
            self._bytes[block.device] += block.nbytes
            return block

    def _drop(self, key: tuple[int, ...]) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._bytes[entry.block.device] -= entry.block.nbytes


def make_block(weight: Tensor, ups: Sequence[Tensor]) -> Float[Tensor, "out_features in_features+rank"]:
    """Write a weight and its updates side by side, with columns of zeros up to a multiple of 8."""
    padding = padded_rank(ups) - sum(up.shape[1] for up in ups)
    with torch.no_grad():
        return torch.cat([weight, *ups, weight.new_zeros(weight.shape[0], padding)], dim=1)


def write_updates(block: Tensor, in_features: int, ups: Sequence[Tensor]) -> None:
    """Write updates into the columns of a block that are not those of the weight."""
    with torch.no_grad():
        for up in ups:
            block[:, in_features : in_features + up.shape[1]].copy_(up)
            in_features += up.shape[1]


def prepare_lora_block(
    weight: Float[Tensor, "out_features in_features"], ups: Sequence[Float[Tensor, "out_features rank"]]
) -> Float[Tensor, "out_features in_features+rank"] | None:
    """Give the `block` argument for `lora_linear`, where one makes it faster.

    Blocks are kept, so that only the first call after a change copies the weight. `REFINERS_CACHE_MIB` bounds what
    they take on each device; the default is a quarter of its memory.

    Args:
        weight: The weight of the layer.
        ups: The matrices B of the updates.

    Returns:
        The block, or None: where `lora_linear` would not use it on this device and dtype, while compiling, while
        gradients are recorded for one of the tensors (it would be made anew each step), for tensors without a version
        counter (those made in inference mode, where a change would go unseen), and where it would not fit.
    """
    if torch.compiler.is_compiling() or not ups or not native.takes_lora_block(weight.dtype, weight.device):
        return None
    tensors = (weight, *ups)
    if any(tensor.is_inference() for tensor in tensors):
        return None
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return None
    return lora_block_cache.get(weight, ups)


def _state(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _layouts(state: tuple[Any, ...]) -> list[Any]:
    return [each[2:4] for each in state]


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_of(device: Device) -> int:
    """Give the bytes that the blocks on a device may take."""
    if native.settings.cache_mib is not None:
        return native.settings.cache_mib << 20
    if device.type == "cuda":
        return cast(int, torch.cuda.get_device_properties(device).total_memory) // _SHARE
    return _memory() // _SHARE


lora_block_cache = LoraBlockCache(limit_of)
