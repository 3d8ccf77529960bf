"""Neighbours in a chain that one operator computes at once.

The tree shows both layers, and whoever looks on at one of them, or edits the chain between them, sees them called one
after the other: whether they are computed at once is decided in each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Joint: TypeAlias = Callable[[Any, Any], Callable[[Any], Any] | None]
"""Gives what computes a layer and the next one; `None` if they must be called one after the other."""

JOINTS: dict[type, dict[type, Joint]] = {}
"""The joints, by the classes of the layers; subclasses have others, or none."""


def joint(first: type, second: type) -> Callable[[Joint], Joint]:
    """Let a function join layers of two classes."""

    def register(function: Joint) -> Joint:
        JOINTS.setdefault(first, {})[second] = function
        return function

    return register


def join(layer: object, following: object) -> Callable[[Any], Any] | None:
    """Give what computes a layer and the next one, if something does."""
    function = JOINTS[type(layer)].get(type(following))
    return None if function is None else function(layer, following)
