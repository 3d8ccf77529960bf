"""Collections are held back while modules are built."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from refiners.fluxion.bulk import collections_paused


@pytest.fixture
def collected() -> Iterator[list[int]]:
    """The generations that are collected."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_nothing_is_collected_while_much_is_built(collected: list[int]) -> None:
    count = 100 * gc.get_threshold()[0]
    with collections_paused():
        with collections_paused():
            built = [[each] for each in range(count)]
        assert not gc.isenabled() and not collected
    assert gc.isenabled()
    built += [[each] for each in range(count)]
    assert collected and len(built) == 2 * count


def test_collections_that_are_off_stay_off() -> None:
    gc.disable()
    try:
        with pytest.raises(KeyError), collections_paused():
            raise KeyError
        assert not gc.isenabled()
    finally:
        gc.enable()
