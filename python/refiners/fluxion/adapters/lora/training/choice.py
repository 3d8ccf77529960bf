"""Which layers of a tree are meant: by their classes, their paths, and the classes of the chains above them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.places import Place, find_places

V = TypeVar("V")

LAYERS = (fl.Linear, fl.Conv2d)  # what updates of low rank are for


class PathTable(Generic[V]):
    """Values by patterns of paths: regular expressions that fit a whole path, or its end after a dot, as in PEFT.

    Args:
        argument: What the table is called in errors.
        values: The values by pattern; the first pattern that fits counts.

    Raises:
        TypeError: If a pattern is no text.
        ValueError: If one is no regular expression.
    """

    def __init__(self, argument: str, values: Mapping[str, V]) -> None:
        self.argument = argument
        self._values = [(pattern, _compiled(argument, pattern), value) for pattern, value in values.items()]
        self._unused = set(values)

    def find(self, path: str) -> V | None:
        """Give the value of a path, if there is one."""
        for pattern, expression, value in self._values:
            if expression.fullmatch(path):
                self._unused.discard(pattern)
                return value
        return None

    def check_all_used(self, paths: Sequence[str]) -> None:
        """Raise `ValueError` if a pattern has been found for no path."""
        unused = [pattern for pattern, *_ in self._values if pattern in self._unused]
        if unused:
            raise ValueError(
                f"{self.argument}: {unused[0]!r} fits none of {len(paths)} layers, such as {', '.join(paths[:3])}"
            )


def choose_places(
    target: fl.Chain,
    layer_types: Sequence[type[fl.WeightedModule]],
    paths: Sequence[str] | None,
    include: Collection[str] | None,
    exclude: Collection[str] | None,
) -> dict[str, Place]:
    """Find the layers that are meant, by their paths in the tree without adapters.

    Args:
        target: Where to look.
        layer_types: The classes of the layers.
        paths: If given, only layers whose paths one of these patterns fits; see `PathTable`.
        include: If given, only layers with a chain of one of these classes above them.
        exclude: No layers with a chain of one of these classes above them.

    Raises:
        ValueError: If there is none, a pattern fits none, or one is a convolution of several groups.
    """
    table = None if paths is None else PathTable("paths", dict.fromkeys(paths, True))
    candidates = {
        path: place
        for path, place in find_places(target).items()
        if place.parent is not None and isinstance(place.layer, tuple(layer_types))
    }
    found: dict[str, Place] = {}
    for path, place in candidates.items():
        if (table is None or table.find(path)) and _is_within(place, include, exclude):
            found[path] = place
    if table is not None:
        table.check_all_used(list(candidates))
    if not found:
        kinds = " or ".join(each.__name__ for each in layer_types)
        raise ValueError(
            f"no layer was chosen: {type(target).__name__} has {len(candidates)} of {kinds},"
            f" and {paths=}, {include=}, {exclude=} leave none"
        )
    for path, place in found.items():
        if isinstance(place.layer, fl.Conv2d) and place.layer.groups != 1:
            raise ValueError(f"{path} is a convolution of several groups, which have no updates: {place.layer}")
    return found


def check_texts(argument: str, texts: Iterable[str] | None) -> None:
    """Raise `TypeError` if an argument is no collection of texts."""
    if texts is not None and (isinstance(texts, str) or not all(isinstance(text, str) for text in texts)):
        raise TypeError(f"{argument} must be a list of texts, got {texts!r}")


def _is_within(place: Place, include: Collection[str] | None, exclude: Collection[str] | None) -> bool:
    above = place.class_names
    return (include is None or not above.isdisjoint(include)) and (exclude is None or above.isdisjoint(exclude))


def _compiled(argument: str, pattern: str) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise TypeError(f"{argument} must be regular expressions, got {pattern!r}")
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})")
    except re.error as error:
        raise ValueError(f"{argument}: {pattern!r} is no regular expression: {error}") from error
