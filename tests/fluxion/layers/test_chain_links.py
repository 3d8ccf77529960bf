"""Links between a chain and what is above and below it, in the less usual ways to make them."""

import copy

import pytest

import refiners.fluxion.layers as fl


def test_a_chain_cannot_contain_itself() -> None:
    inner = fl.Chain()
    outer = fl.Chain(inner)
    for chain, newcomer in ((inner, inner), (inner, outer)):
        with pytest.raises(ValueError, match="it contains it"):
            chain.append(newcomer)
    assert (len(inner), inner.parent, outer.parent) == (0, outer, None)


def test_the_values_of_the_tree_left_last_win() -> None:
    child = fl.Chain()
    for value in (1, 2):
        tree = fl.Chain(child)
        tree.set_context("numbers", {"one": value})
        tree.remove(child)
    assert child.use_context("numbers") == {"one": 2}


def test_a_shallow_copy_is_a_structural_one() -> None:
    child = fl.Chain(fl.Linear(2, 2))
    chain = fl.Chain(child)
    other = copy.copy(chain)
    assert (child.parent, len(other)) == (chain, 1)
    assert other.Chain.Linear is child.Linear
    assert other.Chain is not child


def test_a_deep_copy_of_a_part_that_refers_to_the_whole() -> None:
    part = fl.Chain(fl.Linear(2, 2), fl.UseContext("numbers", "one"))
    whole = fl.Chain(part)
    whole.set_context("numbers", {"one": 1})
    part.back = [whole]
    other = copy.deepcopy(part)
    assert other.parent is other.back[0]
    assert other.parent is not whole
    other.parent.set_context("numbers", {"one": 2})
    assert (other.use_context("numbers"), part.use_context("numbers")) == ({"one": 2}, {"one": 1})
