"""Walking over the descendants of a chain."""

from collections.abc import Iterator

import pytest

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter


@pytest.fixture
def chain() -> fl.Chain:
    return fl.Chain(
        fl.Sum(fl.Linear(1, 1), fl.Linear(1, 1)),
        fl.Chain(fl.ReLU(), fl.Chain(fl.Linear(1, 1))),
    )


def test_walk_is_lazy(chain: fl.Chain) -> None:
    seen: list[fl.Module] = []

    def predicate(module: fl.Module, _parent: fl.Chain) -> bool:
        seen.append(module)
        return True

    steps = chain.walk(predicate)
    assert isinstance(steps, Iterator) and seen == []
    next(steps)
    assert seen == [chain.Sum]


def test_without_predicate_the_direct_children_are_walked(chain: fl.Chain) -> None:
    assert list(chain.walk()) == [(chain.Sum, chain), (chain.Chain, chain)]


def test_recursion_yields_every_descendant_before_what_it_holds(chain: fl.Chain) -> None:
    total, inner = chain.Sum, chain.Chain
    assert list(chain.walk(recurse=True)) == [
        (total, chain),
        (total.Linear_1, total),
        (total.Linear_2, total),
        (inner, chain),
        (inner.ReLU, inner),
        (inner.Chain, inner),
        (inner.Chain.Linear, inner.Chain),
    ]


def test_a_class_selects_its_instances_with_their_direct_parents(chain: fl.Chain) -> None:
    total, deep = chain.Sum, chain.Chain.Chain
    assert list(chain.walk(fl.Linear)) == [(total.Linear_1, total), (total.Linear_2, total), (deep.Linear, deep)]


def test_a_function_gets_the_module_and_its_parent(chain: fl.Chain) -> None:
    found = list(chain.walk(lambda module, parent: isinstance(module, fl.Linear) and type(parent) is fl.Chain))
    assert found == [(chain.Chain.Chain.Linear, chain.Chain.Chain)]


def test_matches_are_not_entered_unless_asked(chain: fl.Chain) -> None:
    assert [module for module, _ in chain.walk(fl.Chain)] == [chain.Sum, chain.Chain]
    assert [module for module, _ in chain.walk(fl.Chain, recurse=True)] == [chain.Sum, chain.Chain, chain.Chain.Chain]


def test_only_chains_are_entered() -> None:
    assert list(fl.Chain(fl.GLU(fl.SiLU())).walk(fl.SiLU)) == []


def test_the_walked_chain_itself_is_not_yielded(chain: fl.Chain) -> None:
    assert all(module is not chain for module, _ in chain.walk(recurse=True))


def test_a_predicate_that_stops_hides_a_module_and_what_is_below(chain: fl.Chain) -> None:
    def predicate(module: fl.Module, _parent: fl.Chain) -> bool:
        if isinstance(module, fl.Sum):
            raise StopIteration
        return isinstance(module, fl.Linear)

    assert list(chain.walk(predicate)) == [(chain.Chain.Chain.Linear, chain.Chain.Chain)]


def test_subscripted_generics_are_refused_when_walk_is_called(chain: fl.Chain) -> None:
    with pytest.raises(ValueError, match="subscripted generics cannot be used as predicates"):
        chain.walk(Adapter[fl.Linear])  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_module_may_be_replaced_while_it_is_yielded(chain: fl.Chain) -> None:
    for linear, parent in chain.walk(fl.Linear):
        parent.replace(linear, fl.Chain(fl.Linear(1, 1)))
    assert len(list(chain.layers(fl.Linear))) == 3
    assert list(chain.Sum._modules) == ["Chain_1", "Chain_2"]


def test_the_children_walked_are_those_when_their_chain_was_entered(chain: fl.Chain) -> None:
    seen: list[fl.Module] = []
    total = chain.Sum
    expected = list(total)
    for module, parent in chain.walk(lambda module, parent: parent is total):
        seen.append(module)
        if len(parent) > 1:
            parent.pop()
            parent.append(fl.Identity())
            parent.insert(0, fl.Identity())
    assert seen == expected


def test_layers_yields_the_modules_of_a_walk() -> None:
    chain = fl.Chain(fl.Chain(fl.Chain()), fl.Chain(fl.Chain()))
    assert len(list(chain.layers(fl.Chain))) == 2
    assert len(list(chain.layers(fl.Chain, recurse=True))) == 4


def test_find_is_the_first_of_a_type(chain: fl.Chain) -> None:
    assert chain.find(fl.Linear) is chain.Sum.Linear_1
    flat = fl.Chain(fl.Linear(1, 1))
    assert flat.find(fl.Linear) is flat.Linear
    assert chain.find(fl.Conv2d) is None


def test_ensure_find_is_an_error_without_a_match(chain: fl.Chain) -> None:
    assert chain.ensure_find(fl.ReLU) is chain.Chain.ReLU
    with pytest.raises(AssertionError, match=r"could not find <class '.*Conv2d'> in Chain"):
        chain.ensure_find(fl.Conv2d)
