"""Results that are used again while nothing they depend on has changed.

From step to step, most of what a U-Net computes is new. What it makes of the prompts is not, and what it makes of the
timesteps can be computed for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.plain import find_plain_parts
from refiners.fluxion.layers.watched import is_watched
from refiners.ops.transforms import is_autocast, is_transformed


class _Entry(NamedTuple):
    tensors: list[Tensor]  # held, so that no other tensor can be taken for one of them
    state: list[object]
    result: Tensor


class Reused:
    """The last result of a function, as long as nothing that it depends on has changed.

    A result belongs to the very tensors it was made of, while no in-place change, cast or move has touched them. Like
    autograd, this sees changes by their version counters, not those that were written through `.data`.

    The function is simply called where a result could be wrong or in the way: while gradients are recorded, under
    `torch.func` and autocast, while compiling or capturing a graph, for tensors without a version counter, which are
    those made in inference mode, and where a module is no plain `fl.Linear` or `LoraAdapter` of one.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None  # replaced as a whole, for threads that share it

    def __call__(self, function: Callable[[], Tensor], depends_on: Sequence[fl.Module | Tensor]) -> Tensor:
        """Give `function()`.

        Args:
            function: The function.
            depends_on: The tensors and modules that its result depends on.
        """
        found = self._find(function, depends_on)
        return function() if found is None else found

    def rows(self, function: Callable[[Tensor], Tensor], x: Tensor, depends_on: Sequence[fl.Module | Tensor]) -> Tensor:
        """Give `function(x)`, of a function that treats the rows of its argument one by one.

        Where `x` is some rows of a larger tensor, as the timestep of a step is one of those of all steps, the function
        is called with all rows, and the same rows of its result are given.

        Args:
            function: The function.
            x: Its argument.
            depends_on: The tensors and modules, besides the argument, that its result depends on.
        """
        table, rows = _table_of(x)
        found = self._find(lambda: function(table), (table, *depends_on))
        if found is None:
            return function(x)
        return found if rows is None else found[rows]

    def _find(self, function: Callable[[], Tensor], depends_on: Sequence[fl.Module | Tensor]) -> Tensor | None:
        """Give the result, computed now if need be; None where it must not be kept."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed():
            return None
        tensors, numbers = list[Tensor](), list[object]()
        if not all(_add(item, tensors, numbers) for item in depends_on):
            return None
        first = tensors[0]
        if any(tensor.is_inference() for tensor in tensors) or first.is_meta or is_autocast(first):
            return None
        if first.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return None  # a replay would read the result after it was dropped
            numbers.append(torch.cuda.current_stream(first.device).cuda_stream)  # no other waits for what this one does
        state = [(tensor._version, tensor.data_ptr(), tensor.dtype) for tensor in tensors] + numbers
        entry = self._entry
        if entry is None or entry.state != state or any(a is not b for a, b in zip(entry.tensors, tensors)):
            self._entry = entry = _Entry(tensors, state, function())
        return entry.result

    def __deepcopy__(self, memo: object) -> Reused:
        return Reused()

    def __reduce__(self) -> tuple[type[Reused], tuple[()]]:
        return Reused, ()


def _table_of(x: Tensor) -> tuple[Tensor, int | slice | None]:
    """Give the tensor that x is one row or some rows of, and which; x itself and None if it is no such part."""
    table = x._base
    if table is None or table.ndim == 0 or table.dtype != x.dtype:
        return x, None
    offset, row = int(x.storage_offset()) - int(table.storage_offset()), table.stride(0) or 1
    start, rest = offset // row, offset % row
    if rest or not 0 <= start < table.shape[0]:
        return x, None
    if x.shape == table.shape[1:] and x.stride() == table.stride()[1:]:
        return table, start
    if x.ndim == table.ndim and x.shape[1:] == table.shape[1:] and x.stride()[1:] == table.stride()[1:]:
        count = x.shape[0]
        if (count == 1 or x.stride(0) == table.stride(0)) and start + count <= table.shape[0]:
            return table, slice(start, start + count)
    return x, None


def _add(item: fl.Module | Tensor, tensors: list[Tensor], numbers: list[object]) -> bool:
    """Append the tensors and numbers that stand for an item; False where they do not tell all."""
    if isinstance(item, Tensor):
        tensors.append(item)
        return type(item) is Tensor or type(item) is nn.Parameter
    if type(item) is fl.Linear:
        weight, bias = item._parameters.get("weight"), item._parameters.get("bias")
        if is_watched(item) or type(weight) is not nn.Parameter or "bias" not in item._parameters:
            return False
        tensors += [weight] if bias is None else [weight, bias]
        return True
    if not isinstance(item, LoraAdapter) or is_watched(item):
        return False
    parts = find_plain_parts(item)
    if parts is None:
        return False
    tensors += [parts.weight, *parts.downs, *parts.ups]
    if parts.bias is not None:
        tensors.append(parts.bias)
    for scale in parts.scales:
        if isinstance(scale, Tensor):
            tensors.append(scale)
        else:
            numbers.append(scale)
    return True
