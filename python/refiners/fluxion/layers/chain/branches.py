"""Chains that call their children side by side, or around a value that bypasses them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from refiners.fluxion.layers.chain.chain import Chain
from refiners.fluxion.layers.module import Module


class Parallel(Chain):
    """Call every child with the same arguments; return the tuple of their results."""

    _tag = "PAR"

    def forward(self, *args: Any) -> tuple[Any, ...]:
        return tuple([self._call_layer(layer, name, *args) for name, layer in self._modules.items()])

    def _show_only_tag(self) -> bool:
        return type(self) is Parallel


class Distribute(Chain):
    """Call the i-th child with the i-th argument; return the tuple of their results.

    Raises:
        AssertionError: When called, if there are not as many arguments as children.
    """

    _tag = "DISTR"

    def forward(self, *args: Any) -> tuple[Any, ...]:
        if len(args) != len(self._modules):
            raise AssertionError(
                f"Number of positional arguments ({len(args)}) must match number of sub-modules ({len(self._modules)})."
            )
        return tuple([self._call_layer(layer, name, arg) for arg, (name, layer) in zip(args, self._modules.items())])

    def _show_only_tag(self) -> bool:
        return type(self) is Distribute


class Passthrough(Chain):
    """Run as a chain, for the effects on contexts; return the arguments, always as a tuple."""

    _tag = "PASS"

    def forward(self, *args: Any) -> tuple[Any, ...]:
        super().forward(*args)
        return args

    def _show_only_tag(self) -> bool:
        return type(self) is Passthrough


class Sum(Chain):
    """Call every child with the same arguments; return the sum of their results, added in the order of the children.

    A child that returns a tuple contributes the sum of its items. `None` before the first result is passed over.

    Raises:
        TypeError: When called, if a later result is `None`.
    """

    _tag = "SUM"

    def forward(self, *args: Any) -> Any:
        total: Any = None
        for layer in self._modules.values():
            total = add_result(total, layer(*args))
        return total

    def _show_only_tag(self) -> bool:
        return type(self) is Sum


def add_result(total: Any, result: Any) -> Any:
    """Add what a child of a `Sum` has given."""
    if isinstance(result, tuple):
        items = cast("tuple[Any, ...]", result)
        result = sum(items[1:], start=items[0]) if items else 0
    return result if total is None else total + result


class Residual(Chain):
    """Run as a chain on one argument, and add that argument to the result.

    Raises:
        AssertionError: When called, if there is not exactly one argument.
    """

    _tag = "RES"

    def forward(self, *args: Any) -> Any:
        if len(args) != 1:
            raise AssertionError(f"Residual connection can only be used with a single input. Got {len(args)}.")
        return super().forward(*args) + args[0]

    def _show_only_tag(self) -> bool:
        return False


class Concatenate(Chain):
    """Call every child with the same arguments; concatenate their results, leaving out `None`.

    Args:
        modules: The children.
        dim: The dimension to concatenate along.
    """

    _tag = "CAT"

    def __init__(self, *modules: Module, dim: int = 0) -> None:
        super().__init__(*modules)
        self.dim = dim

    def forward(self, *args: Any) -> Tensor:
        results = [layer(*args) for layer in self._modules.values()]
        return torch.cat([result for result in results if result is not None], dim=self.dim)

    def _show_only_tag(self) -> bool:
        return type(self) is Concatenate


class Matmul(Chain):
    """Call both children with the same arguments; return the matrix product of their results."""

    _tag = "MATMUL"

    def __init__(self, input: Module, other: Module) -> None:
        super().__init__(input, other)

    def forward(self, *args: Any) -> Tensor:
        first, second = self._modules.values()
        return torch.matmul(first(*args), second(*args))

    def _show_only_tag(self) -> bool:
        return False
