"""Subtrees that leave a tree keep what they saw, and have no part in it any more."""

from typing import Any

import pytest

import refiners.fluxion.layers as fl


class Declaring(fl.Chain):
    """Declares two contexts; both keys of the first are reset, the list of the second starts empty."""

    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"foo": {"bar": None, "baz": 0}, "store": {"items": []}}


def read() -> fl.UseContext:
    return fl.UseContext("foo", "bar")


@pytest.mark.parametrize("remove", [lambda chain: chain.pop(), lambda chain: chain.remove(chain[0])])
def test_removed_subtrees_keep_the_values_they_last_saw(remove: Any) -> None:
    inner = fl.Chain(fl.Chain(read()))
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 1})
    remove(chain)
    chain.set_context("foo", {"bar": 2})
    assert inner(0) == 1


def test_what_is_pushed_into_a_removed_subtree_counts() -> None:
    inner = fl.Chain(fl.Chain(read()))
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 1})
    chain.pop()
    inner.set_context("foo", {"bar": 5})
    assert inner(0) == 5
    other = Declaring(inner)
    other.set_context("foo", {"bar": 6})
    assert chain.use_context("foo")["bar"] == 1


def test_removed_subtrees_do_not_write_into_the_tree_they_left() -> None:
    inner = fl.Chain(fl.SetContext("foo", "bar"))
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 1})
    chain.pop()
    inner(5)
    assert chain.use_context("foo")["bar"] == 1
    other = Declaring(inner)
    inner(6)
    assert other.use_context("foo")["bar"] == 6 and chain.use_context("foo")["bar"] == 1


def test_a_moved_subtree_sees_the_values_of_its_new_tree() -> None:
    inner = fl.Chain(fl.Chain(read()))
    first, second = Declaring(inner), Declaring()
    first.set_context("foo", {"bar": 1})
    second.set_context("foo", {"bar": 2})
    inner(0)
    first.pop()
    second.append(inner)
    assert inner(0) == 2


class Outer(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"outer": {"value": 0}}


class Middle(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"middle": {"value": 0}}


@pytest.mark.parametrize("pop_first", [True, False])
def test_a_moved_subtree_hears_no_more_of_the_tree_it_left(pop_first: bool) -> None:
    inner = Outer()
    moved = Middle(inner)
    first = Outer(moved)
    first.set_context("outer", {"value": 44})
    if pop_first:
        first.remove(moved)
    fl.Chain().append(moved)
    inner.set_context("outer", {"value": 78})
    moved.set_context("middle", {"value": 1})  # pushes what is visible above into what is declared below
    assert inner.use_context("outer")["value"] == moved.use_context("outer")["value"] == 44


def test_an_ejected_subtree_hears_no_more_of_its_adapter() -> None:
    class Declares(fl.Chain, fl.Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(target)

        def init_context(self) -> dict[str, dict[str, Any]]:
            return {"outer": {"value": 1}}

    inner = Outer()
    target = Middle(inner)
    tree = fl.Chain(target)
    adapter = Declares(target).inject()
    adapter.set_context("outer", {"value": 44})
    adapter.eject()
    assert tree[0] is target
    inner.set_context("outer", {"value": 78})
    target.set_context("middle", {"value": 1})
    assert inner.use_context("outer")["value"] == target.use_context("outer")["value"] == 44


def test_what_is_written_into_the_contexts_of_a_root_is_read() -> None:
    chain = fl.Chain(read())
    chain.provider.contexts["foo"] = {"bar": 3}
    assert chain(0) == 3
