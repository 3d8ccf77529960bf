"""Results that are used again while the tensors they were made of have not changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage

from refiners.ops.transforms import is_autocast, is_transformed


class _Entry(NamedTuple):
    tensors: list[weakref.ref[Tensor]]  # their callbacks drop the entry
    storages: list[UntypedStorage]  # held, so that no other tensor comes to lie at the same address
    state: list[object]
    result: Tensor
    version: int


class Kept:
    """The last result of a function of tensors, as long as none of them has changed.

    The function must depend on nothing else: its owner makes sure of that at each call. A result belongs to the very
    tensors it was made of, while they live and no in-place change, cast or move has touched them. Like autograd, this
    sees changes by their version counters: not those written through `.data`, or past torch, as by numpy into shared
    memory.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None  # replaced as a whole, for threads that share it

    def find(
        self, function: Callable[[], Tensor], tensors: Sequence[Tensor], numbers: Sequence[object] = ()
    ) -> Tensor | None:
        """Give the result, computed now if need be.

        It is None where it could be wrong or in the way: while gradients are recorded, under `torch.func` and autocast,
        while compiling or capturing a graph, and for tensors without a version counter, which are those made in
        inference mode.

        Args:
            function: Computes the result.
            tensors: What it is made of.
            numbers: What else it depends on, to be compared.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed():
            return None
        if any(tensor.is_meta or tensor.is_inference() or is_autocast(tensor) for tensor in tensors):
            return None
        numbers = list(numbers)
        if (x := tensors[0]).is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return None  # a replay would read the result after it was dropped
            numbers.append(torch.cuda.current_stream(x.device).cuda_stream)  # no other waits for what this one does
        state = [(tensor._version, tensor.data_ptr(), tensor.dtype) for tensor in tensors] + numbers
        entry = self._entry
        if (
            entry is not None
            and entry.state == state
            and all(kept() is tensor for kept, tensor in zip(entry.tensors, tensors, strict=True))
            and entry.result._version == entry.version  # nobody has written into it
        ):
            return entry.result
        return self._keep(function(), tensors, state)

    def _keep(self, result: Tensor, tensors: Sequence[Tensor], state: list[object]) -> Tensor:
        if type(result) is not Tensor or result.is_inference():
            return result
        this = weakref.ref(self)

        def drop(_: object) -> None:
            owner = this()
            if owner is not None:
                owner.forget()

        owners = [weakref.ref(tensor, drop) for tensor in tensors]
        storages = [tensor.untyped_storage() for tensor in tensors]
        self._entry = _Entry(owners, storages, state, result, result._version)
        return result

    def forget(self) -> None:
        """Drop the result."""
        self._entry = None

    def __deepcopy__(self, memo: object) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
