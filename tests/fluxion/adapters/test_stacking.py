"""Several adapters on one target, injected and ejected in any order."""

from collections.abc import Callable
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter


class A(fl.Chain, Adapter[Any]):
    def __init__(self, target: fl.Module) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Chain(target), fl.Lambda(lambda x: 2 * x))


class B(fl.Chain, Adapter[Any]):
    def __init__(self, target: fl.Module) -> None:
        with self.setup_adapter(target):
            super().__init__(target, fl.Lambda(lambda x: x + 1))


class C(fl.Sum, Adapter[Any]):
    def __init__(self, target: fl.Module) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Identity(), target)


class Hollow(fl.Chain, Adapter[Any]):
    """An adapter that does without its target."""

    def __init__(self, target: fl.Module) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Identity())


Make = Callable[[], fl.Module]
TARGETS: dict[str, Make] = {"leaf": lambda: fl.Linear(2, 2), "chain": lambda: fl.Chain(fl.Linear(2, 2), fl.ReLU())}


def snapshot(root: fl.Chain) -> list[tuple[str, int, int]]:
    return [(name, id(module), id(getattr(module, "parent", None))) for name, module in root.named_modules()]


def build(make: Make) -> tuple[fl.Chain, fl.Module]:
    target = make()
    return fl.Chain(fl.Chain(fl.Linear(2, 2), target), fl.Linear(2, 2)), target


def inject(root: fl.Chain, *adapters: Any) -> None:
    for adapter in adapters:
        adapter.inject(root)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_the_later_adapter_is_nested_inside_the_earlier(make: Make) -> None:
    root, target = build(make)
    a, b = A(target), B(target)
    inject(root, a, b)
    assert a.parent is root[0] and b.parent is a.layer("Chain", fl.Chain) and target in b
    if isinstance(target, fl.Chain):
        assert target.parent is b


def test_chain_targets_need_no_parent_to_nest() -> None:
    root, target = build(TARGETS["chain"])
    a, b = A(target).inject(), B(target)
    b.inject()
    assert b.parent is a.layer("Chain", fl.Chain) and a.parent is root[0]


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_ejecting_in_any_order_restores_the_same_objects_and_the_same_bits(make: Make, order: tuple[int, ...]) -> None:
    root, target = build(make)
    before, x = snapshot(root), torch.randn(3, 2)
    expected = root(x)
    adapters = [A(target), B(target), C(target)]
    inject(root, *adapters)
    assert not torch.equal(root(x), expected)
    for index in order:
        adapters[index].eject()
    assert snapshot(root) == before
    assert torch.equal(root(x), expected)
    assert all(adapter.parent is None for adapter in adapters)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_ejecting_the_outer_adapter_leaves_the_inner_one_in_place(make: Make) -> None:
    root, target = build(make)
    a, b = A(target), B(target)
    inject(root, a, b)
    a.eject()
    assert b.parent is root[0] and target in b
    b.eject()
    assert target in root.layer(0, fl.Chain)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_ejecting_the_inner_adapter_leaves_the_outer_one_in_place(make: Make) -> None:
    root, target = build(make)
    a, b = A(target), B(target)
    inject(root, a, b)
    b.eject()
    assert a.parent is root[0] and target in a.layer("Chain", fl.Chain)
    if isinstance(target, fl.Chain):
        assert target.parent is a.layer("Chain", fl.Chain)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_ejected_adapters_can_be_injected_again(make: Make, order: tuple[int, ...]) -> None:
    root, target = build(make)
    before, x = snapshot(root), torch.randn(3, 2)
    adapters = [A(target), B(target), C(target)]
    inject(root, *adapters)
    expected = root(x)
    for index in order:
        adapters[index].eject()
    inject(root, *adapters)
    assert torch.equal(root(x), expected)
    for adapter in reversed(adapters):
        adapter.eject()
    assert snapshot(root) == before


def test_an_adapter_of_an_adapter_wraps_it() -> None:
    root, target = build(TARGETS["leaf"])
    before, x = snapshot(root), torch.randn(3, 2)
    expected = root(x)
    a = A(target).inject(root)
    b = B(a).inject()
    assert b.parent is root[0] and a.parent is b
    b.eject()
    a.eject()
    assert snapshot(root) == before and torch.equal(root(x), expected)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_an_adapter_of_an_adapter_may_outlive_it(make: Make) -> None:
    root, target = build(make)
    before, x = snapshot(root), torch.randn(3, 2)
    expected = root(x)
    a = A(target).inject(root)
    b = B(a).inject()
    a.eject()
    assert b.parent is root[0] and target in b
    b.eject()
    assert snapshot(root) == before and torch.equal(root(x), expected)


def test_an_adapter_without_its_target_hides_it_from_later_ones() -> None:
    root, target = build(TARGETS["chain"])
    before = snapshot(root)
    hollow, b = Hollow(target).inject(), B(target)
    assert isinstance(target, fl.Chain) and target.parent is None
    injected = snapshot(root)
    with suppress(RuntimeError, AssertionError):
        b.inject()
    assert snapshot(root) == injected
    if target.parent is not None:
        b.eject()
    hollow.eject()
    assert snapshot(root) == before


def test_edits_around_stacked_adapters_survive_ejection() -> None:
    root, target = build(TARGETS["leaf"])
    a, b = A(target), B(target)
    inject(root, a, b)
    root.layer(0, fl.Chain).append(fl.ReLU())
    b.eject()
    a.eject()
    assert list(root.layer(0, fl.Chain)._modules) == ["Linear_1", "Linear_2", "ReLU"]
    assert root.layer((0, 1)) is target
