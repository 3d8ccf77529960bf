"""Adapters that are misused, or interrupted, leave the tree as it was."""

from typing import Any

import pytest

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter


class LeafAdapter(fl.Chain, Adapter[fl.Linear]):
    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(target)


class ChainAdapter(fl.Sum, Adapter[fl.Chain]):
    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Passthrough(target), fl.Identity())


def tree(chain: fl.Chain) -> list[tuple[str, int, int]]:
    """Names, modules and parents of a tree, by identity."""
    return [(name, id(module), id(getattr(module, "parent", None))) for name, module in chain.named_modules()]


@pytest.fixture
def parent() -> fl.Chain:
    return fl.Chain(fl.Linear(2, 2), fl.Chain(fl.Linear(2, 2), fl.ReLU()))


def test_an_exception_in_the_constructor_leaves_the_tree_as_it_was(parent: fl.Chain) -> None:
    class Broken(fl.Chain, Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                raise ValueError("no")

    before = tree(parent)
    target = parent.layer("Chain", fl.Chain)
    with pytest.raises(ValueError, match="no"):
        Broken(target)
    assert tree(parent) == before
    ChainAdapter(target).inject().eject()
    assert tree(parent) == before


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4, 5, 6])
def test_an_exception_inside_inject_leaves_the_tree_as_it_was(
    parent: fl.Chain, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = parent.layer("Chain", fl.Chain)
    adapter = ChainAdapter(target)
    before, inside = tree(parent), tree(adapter)
    _fail_at_write(monkeypatch, fails_at)
    try:
        adapter.inject()
    except MemoryError:
        monkeypatch.undo()
        assert tree(parent) == before and tree(adapter) == inside
        adapter.inject()
    assert adapter.parent is parent


def _fail_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the n-th write to `_modules` or `_parent` of any chain fail."""
    original = fl.Chain.__setattr__
    writes: list[str] = []

    def write(self: fl.Chain, name: str, value: Any) -> None:
        if name in ("_modules", "_parent"):
            writes.append(name)
            if len(writes) == number:
                raise MemoryError
        original(self, name, value)

    monkeypatch.setattr(fl.Chain, "__setattr__", write)


def test_injecting_twice_says_what_to_do(parent: fl.Chain) -> None:
    for adapter, where in (
        (LeafAdapter(parent.layer("Linear", fl.Linear)), parent),
        (ChainAdapter(parent.layer("Chain", fl.Chain)), None),
    ):
        adapter.inject(where)
        before = tree(parent)
        with pytest.raises(RuntimeError, match="eject it first"):
            adapter.inject(where)
        assert tree(parent) == before


def test_ejecting_what_is_not_injected_says_what_to_do(parent: fl.Chain) -> None:
    before = tree(parent)
    adapters = LeafAdapter(parent.layer("Linear", fl.Linear)), ChainAdapter(parent.layer("Chain", fl.Chain))
    for adapter in adapters:
        with pytest.raises(RuntimeError, match="inject it first"):
            adapter.eject()
        assert tree(parent) == before
    adapters[0].inject(parent).eject()
    with pytest.raises(RuntimeError, match="inject it first"):
        adapters[0].eject()
    assert tree(parent) == before


def test_a_leaf_target_without_a_parent_says_what_to_do(parent: fl.Chain) -> None:
    before = tree(parent)
    with pytest.raises(RuntimeError, match=r"inject\(parent\)"):
        LeafAdapter(parent.layer("Linear", fl.Linear)).inject()
    assert tree(parent) == before


def test_a_root_that_its_adapter_does_not_hold_is_injected_and_ejected_once() -> None:
    class Beside(fl.Chain, fl.Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(fl.Identity())

    root = fl.Chain(fl.Identity())
    adapter = Beside(root).inject()
    with pytest.raises(RuntimeError, match="already injected"):
        adapter.inject()
    adapter.eject()
    assert root.parent is None
    with pytest.raises(RuntimeError, match="not injected"):
        adapter.eject()
