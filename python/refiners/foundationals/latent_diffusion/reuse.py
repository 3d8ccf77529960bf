"""Results of linear layers that are used again while nothing they depend on has changed.

From step to step, most of what a U-Net computes is new. What it makes of the prompts is not, and what it makes of the
timesteps can be computed for all steps at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.plain import find_plain_parts
from refiners.fluxion.kept import Kept
from refiners.fluxion.layers.watched import is_watched

_MOST_ROWS = 100  # of a table that is computed as a whole


class Reused:
    """The last result of a function of tensors and of linear layers, as long as none of them has changed.

    The function must depend on nothing else: its owner makes sure of that at each call. See `refiners.fluxion.kept` for
    what is noticed, and for where the function is simply called; it is also where a layer is no plain `fl.Linear`, nor
    a `LoraAdapter` of one whose scales are numbers.
    """

    def __init__(self) -> None:
        self._kept = Kept()
        self._seen: list[weakref.ref[Tensor]] = []  # the others of the last call

    def __call__(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], layers: Sequence[fl.Module]
    ) -> Tensor:
        """Give `function(*inputs)`, which depends on these layers."""
        found = self._find(function, inputs, layers)
        return function(*inputs) if found is None else found

    def rows(
        self, function: Callable[..., Tensor], x: Tensor, layers: Sequence[fl.Module], others: Sequence[Tensor] = ()
    ) -> Tensor:
        """Give `function(x, *others)`, which depends on these layers and treats the rows of `x` one by one.

        Where `x` is some rows of a larger tensor, as the timestep of a step is one of those of all steps, the function
        is called with all rows, and the same rows of its result are given: from the second call with the same others
        on, since they may be new ones at each step.
        """
        if torch.compiler.is_compiling():
            return function(x, *others)
        known = [seen() for seen in self._seen]
        self._seen = [weakref.ref(other) for other in others]
        if len(known) != len(others) or any(one is not other for one, other in zip(known, others)):
            return function(x, *others)
        table, rows = _table_of(x)
        found = self._find(function, (table, *others), layers)
        if found is None:
            return function(x, *others)
        return found if rows is None else found[rows]

    def forget(self) -> None:
        """Drop the result."""
        self._kept.forget()

    def _find(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], layers: Sequence[fl.Module]
    ) -> Tensor | None:
        """Give the result, computed now if need be; None where it must not be kept."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None  # before anything is looked at
        if any(type(x) is not Tensor for x in inputs):
            return None
        tensors, numbers = list(inputs), list[object]()
        if not all(_add(layer, tensors, numbers) for layer in layers):
            return None
        return self._kept.find(partial(function, *inputs), tensors, numbers)

    def __deepcopy__(self, memo: object) -> Reused:
        return Reused()

    def __reduce__(self) -> tuple[type[Reused], tuple[()]]:
        return Reused, ()


def _table_of(x: Tensor) -> tuple[Tensor, int | slice | None]:
    """Give the tensor that x is one row or some rows of, and which; x itself and None if it is no such part."""
    table = x._base
    if table is None or table.ndim == 0 or table.shape[0] > _MOST_ROWS or table.dtype != x.dtype:
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


def _add(layer: fl.Module, tensors: list[Tensor], numbers: list[object]) -> bool:
    """Append the tensors and numbers that stand for a layer; False where they do not tell all."""
    if is_watched(layer):
        return False
    if type(layer) is fl.Linear:
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if type(weight) is not nn.Parameter or "bias" not in layer._parameters:
            return False
        tensors += [weight] if bias is None else [weight, bias]
        return True
    parts = find_plain_parts(layer) if isinstance(layer, LoraAdapter) else None
    if parts is None or not all(isinstance(scale, (int, float)) for scale in parts.scales):
        return False
    tensors += [parts.weight, *parts.downs, *parts.ups]
    if parts.bias is not None:
        tensors.append(parts.bias)
    numbers += parts.scales
    return True
