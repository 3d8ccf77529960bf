"""Editing a chain: places, keys, parents and contexts."""

import random
from collections.abc import Callable, Iterable

import pytest

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import generate_unique_names, keys as keys_module


class Declaring(fl.Chain):
    def init_context(self) -> dict[str, dict[str, list[int]]]:
        return {"foo": {"bar": [42]}}


def keys(chain: fl.Chain) -> list[str]:
    return list(chain._modules.keys())


@pytest.fixture
def linears() -> fl.Chain:
    return Declaring(fl.Linear(1, 1), fl.Linear(1, 1))


def test_insert_puts_the_module_at_the_index_with_parent_and_contexts(linears: fl.Chain) -> None:
    child = fl.Chain()
    linears.insert(1, child)
    assert keys(linears) == ["Linear_1", "Chain", "Linear_2"]
    assert child.parent is linears
    assert child.provider.get_context("foo") == {"bar": [42]}


@pytest.mark.parametrize(
    "index,expected",
    [
        (0, ["Chain", "Linear_1", "Linear_2"]),
        (2, ["Linear_1", "Linear_2", "Chain"]),
        (42, ["Linear_1", "Linear_2", "Chain"]),
        (-1, ["Linear_1", "Linear_2", "Chain"]),
        (-2, ["Linear_1", "Chain", "Linear_2"]),
        (-3, ["Chain", "Linear_1", "Linear_2"]),
        (-4, ["Chain", "Linear_1", "Linear_2"]),
        (-42, ["Chain", "Linear_1", "Linear_2"]),
    ],
)
def test_a_negative_index_is_where_the_module_ends_up(linears: fl.Chain, index: int, expected: list[str]) -> None:
    linears.insert(index, fl.Chain())
    assert keys(linears) == expected


def test_insert_around_the_first_direct_child_of_a_type() -> None:
    chain = fl.Chain(fl.Conv2d(1, 1, 1), fl.Sum(fl.Linear(1, 1)), fl.Linear(1, 1), fl.Linear(1, 1))
    chain.insert_after_type(fl.Linear, fl.Chain())
    assert keys(chain) == ["Conv2d", "Sum", "Linear_1", "Chain", "Linear_2"]
    chain.insert_before_type(fl.Linear, fl.ReLU())
    assert keys(chain) == ["Conv2d", "Sum", "ReLU", "Linear_1", "Chain", "Linear_2"]


def test_a_type_is_matched_by_its_subclasses() -> None:
    chain = fl.Chain(fl.Identity(), fl.Linear(1, 1))
    chain.insert_before_type(fl.WeightedModule, fl.ReLU())
    assert keys(chain) == ["Identity", "ReLU", "Linear"]


def test_inserting_around_a_type_that_is_not_there_is_an_error(linears: fl.Chain) -> None:
    for insert in (linears.insert_before_type, linears.insert_after_type):
        with pytest.raises(ValueError, match="No module of type Conv2d found in the chain."):
            insert(fl.Conv2d, fl.ReLU())
    assert keys(linears) == ["Linear_1", "Linear_2"]


def test_the_same_child_may_be_inserted_into_a_second_chain() -> None:
    child = fl.Chain()
    first, second = fl.Chain(fl.Linear(1, 1)), fl.Chain(fl.Linear(1, 1))
    first.insert_after_type(fl.Linear, child)
    second.insert_before_type(fl.Linear, child)
    assert child in first and child in second
    assert child.parent is second


def test_append_puts_last(linears: fl.Chain) -> None:
    child = fl.Chain()
    linears.append(child)
    assert linears[-1] is child and keys(linears) == ["Linear_1", "Linear_2", "Chain"]
    assert child.parent is linears and child.use_context("foo") == {"bar": [42]}


@pytest.mark.parametrize(
    "edit",
    [
        lambda chain: chain.insert(0, 3),
        lambda chain: chain.insert_after_type(fl.Linear, 3),
        lambda chain: chain.append(3),
        lambda chain: chain.replace(chain[0], 3),
    ],
    ids=["insert", "insert_after_type", "append", "replace"],
)
def test_what_is_no_module_is_refused(linears: fl.Chain, edit: Callable[[fl.Chain], None]) -> None:
    before = list(linears)
    with pytest.raises(TypeError, match="Declaring: expected a module, got int"):
        edit(linears)
    assert list(linears) == before


def test_append_renumbers_the_first_of_its_name() -> None:
    chain = fl.Chain(fl.Identity())
    for expected in (["Identity_1", "Identity_2"], ["Identity_1", "Identity_2", "Identity_3"]):
        chain.append(fl.Identity())
        assert keys(chain) == expected


def test_append_gives_the_keys_that_construction_gives() -> None:
    chain = fl.Chain()
    children = [fl.Identity() if index % 3 else fl.ReLU() for index in range(70)]
    for count, child in enumerate(children, start=1):
        chain.append(child)
        assert keys(chain) == keys(fl.Chain(children[:count]))


@pytest.mark.parametrize("index,removed", [(1, 1), (-2, 1), (0, 0), (-1, 2)])
def test_pop_removes_and_returns_one(index: int, removed: int) -> None:
    children = [fl.Linear(1, 1), fl.Chain(), fl.Linear(1, 1)]
    chain = fl.Chain(*children)
    assert chain.pop(index) is children[removed]
    assert list(chain) == [child for child in children if child is not children[removed]]
    assert keys(chain) == (["Linear_1", "Linear_2"] if removed == 1 else list(chain._modules))
    assert children[1].parent is (None if removed == 1 else chain)


def test_pop_takes_the_last_by_default(linears: fl.Chain) -> None:
    last = linears[-1]
    assert linears.pop() is last
    assert keys(linears) == ["Linear"]


def test_pop_of_the_second_of_its_name_takes_the_number_from_the_first() -> None:
    chain = fl.Chain(fl.Identity(), fl.ReLU(), fl.Identity(), fl.Identity())
    for expected in (["Identity_1", "ReLU", "Identity_2"], ["Identity", "ReLU"], ["Identity"], []):
        chain.pop()
        assert keys(chain) == expected


NAMES = ["A", "A_1", "A_2", "A_3", "A_1_1", "NoneType"]
CLASSES = [type(name, (fl.Module,), {}) for name in NAMES]


@pytest.mark.parametrize("seed", range(20))
def test_edits_in_any_order_give_the_keys_that_construction_gives(seed: int) -> None:
    draw = random.Random(seed)
    classes = draw.sample(CLASSES, k=draw.randint(1, 4))
    chain = fl.Chain()
    children: list[fl.Module] = []
    for _ in range(200):
        if children and draw.random() < 0.48:
            index = draw.choice([-1, len(children) - 1, draw.randrange(-len(children), len(children))])
            assert chain.pop(index) is children.pop(index)
        else:
            children.append(draw.choice(classes)())
            chain.append(children[-1])
        assert list(chain) == children
        assert list(chain._modules.items()) == list(generate_unique_names(children).items())


def test_edits_at_the_end_do_not_name_all_children_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = fl.Chain(fl.Identity() for _ in range(6))
    calls: list[int] = []

    def counting(modules: Iterable[fl.Module]) -> dict[str, fl.Module]:
        calls.append(1)
        return generate_unique_names(modules)

    monkeypatch.setattr(keys_module, "generate_unique_names", counting)
    chain.append(fl.Identity())
    for _ in range(5):
        chain.pop()
    assert not calls and keys(chain) == ["Identity_1", "Identity_2"]
    chain.pop()
    assert calls and keys(chain) == ["Identity"]


@pytest.mark.parametrize("index", [3, -4])
def test_pop_out_of_range_is_an_error(index: int) -> None:
    chain = fl.Chain(fl.Identity(), fl.Identity(), fl.Identity())
    with pytest.raises(IndexError, match="Index out of range."):
        chain.pop(index)
    assert len(chain) == 3


def test_remove_takes_a_child_out() -> None:
    first, second, inner = fl.Linear(1, 1), fl.Linear(1, 1), fl.Chain()
    chain = fl.Chain(first, second, inner)
    chain.remove(first)
    assert keys(chain) == ["Linear", "Chain"] and first not in chain and inner in chain
    chain.remove(inner)
    assert inner not in chain and inner.parent is None


def test_remove_of_a_stranger_is_an_error(linears: fl.Chain) -> None:
    with pytest.raises(ValueError, match="ReLU.* is not in Declaring"):
        linears.remove(fl.ReLU())


def test_remove_takes_the_first_of_two_places() -> None:
    identity = fl.Identity()
    chain = fl.Chain(identity, fl.ReLU(), identity)
    chain.remove(identity)
    assert keys(chain) == ["ReLU", "Identity"]


def test_a_context_module_with_a_place_left_keeps_its_parent() -> None:
    inner = fl.Chain()
    chain = fl.Chain(inner, inner)
    chain.remove(inner)
    assert inner in chain and inner.parent is chain


def test_replace_keeps_the_place_and_the_length() -> None:
    inner = fl.Chain(fl.Linear(1, 1), fl.ReLU())
    chain = Declaring(fl.Identity(), inner)
    new = fl.Chain()
    inner.replace(inner.ReLU, new)
    assert len(chain) == 2 and keys(inner) == ["Linear", "Chain"]
    assert inner[1] is new and new.parent is inner
    assert new.use_context("foo") == {"bar": [42]}


def test_replace_orphans_the_old_module() -> None:
    old, new = fl.Chain(), fl.Chain()
    chain = fl.Chain(old)
    chain.replace(old, new)
    assert old.parent is None and new.parent is chain


def test_replace_gives_the_old_module_a_parent_that_already_holds_it() -> None:
    old = fl.Chain()
    chain = fl.Chain(old)
    new = fl.Chain()
    with old.no_parent_refresh():
        new.append(old)
    chain.replace(old, new, old_module_parent=new)
    assert old.parent is new and list(chain) == [new]
    with pytest.raises(AssertionError):
        chain.replace(new, fl.Chain(), old_module_parent=fl.Chain())


def test_replace_of_a_stranger_is_an_error(linears: fl.Chain) -> None:
    with pytest.raises(ValueError, match="ReLU.* is not in Declaring"):
        linears.replace(fl.ReLU(), fl.Identity())


def test_replacing_a_module_by_itself_keeps_its_parent() -> None:
    inner = fl.Chain()
    chain = fl.Chain(inner)
    chain.replace(inner, inner)
    assert inner.parent is chain and list(chain) == [inner]


def test_edits_replace_the_table_of_children(linears: fl.Chain) -> None:
    for edit in (
        lambda: linears.append(fl.ReLU()),
        lambda: linears.insert(0, fl.ReLU()),
        lambda: linears.replace(linears[0], fl.SiLU()),
        lambda: linears.remove(linears[0]),
        lambda: linears.pop(),
    ):
        before = linears._modules
        content = list(before.items())
        edit()
        assert linears._modules is not before and list(before.items()) == content


def test_keys_follow_the_structure(linears: fl.Chain) -> None:
    linears.pop(0)
    assert keys(linears) == ["Linear"]
    linears.insert(0, fl.Linear(1, 1))
    assert keys(linears) == ["Linear_1", "Linear_2"]
