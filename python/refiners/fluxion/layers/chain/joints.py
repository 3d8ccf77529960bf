"""Neighbours in a chain that one operator computes at once.

The tree shows both layers, and whoever looks on at one of them, or edits the chain between them, sees them called one
after the other: whether they are computed at once is decided when it is their turn, in each call. Compilers see the
layers: they join what they compile themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Joint: TypeAlias = Callable[[Any, Any, Tensor], Tensor | None]
"""Computes a layer and the next one; `None` if they must be called one after the other."""


class _Entry(NamedTuple):
    function: Joint
    forwards: tuple[object, object]  # of the two classes, as they were


JOINTS: dict[type, dict[type, _Entry]] = {}
"""The joints, by the classes of the layers; subclasses have others, or none."""


class Addition:
    """What a chain's caller adds to its result: a neighbour of the last layer, which may add it itself.

    Args:
        residual: Computes what is to be added; called once.
    """

    def __init__(self, residual: Callable[[], Any]) -> None:
        self._residual = residual
        self._value: Any = None
        self.is_done = False

    def value(self) -> Any:
        """Give what is to be added."""
        if self._value is None:
            self._value = self._residual()
        return self._value


def joint(first: type, second: type) -> Callable[[Joint], Joint]:
    """Let a function compute layers of two classes."""

    def register(function: Joint) -> Joint:
        JOINTS.setdefault(first, {})[second] = _Entry(function, _forwards(first, second))
        return function

    return register


def join(layer: object, following: object, x: Any) -> Tensor | None:
    """Compute a layer and the next one, if something computes both."""
    first, second = type(layer), type(following)
    entry = JOINTS[first].get(second)
    if entry is None or type(x) is not Tensor or torch.compiler.is_compiling():
        return None
    if entry.forwards != _forwards(first, second):
        return None  # somebody has given all layers of a class another function
    return entry.function(layer, following, x)


def _forwards(first: type, second: type) -> tuple[object, object]:
    return getattr(first, "forward", None), getattr(second, "forward", None)
