"""Adapters: taking the place of a module, and giving it back."""

from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.fluxion.adapters.adapter import lookup_top_adapter


class LeafAdapter(fl.Chain, Adapter[fl.Linear]):
    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(target)


class ChainAdapter(fl.Sum, Adapter[fl.Chain]):
    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Passthrough(target), fl.Identity())


class Declaring(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"foo": {"bar": None}}


def tree(chain: fl.Chain) -> list[tuple[str, int, int]]:
    """Names, modules and parents of a tree, by identity."""
    return [(name, id(module), id(getattr(module, "parent", None))) for name, module in chain.named_modules()]


@pytest.fixture
def parent() -> fl.Chain:
    return fl.Chain(fl.Linear(2, 2), fl.Chain(fl.Linear(2, 2), fl.ReLU()))


def test_an_adapter_must_be_a_chain() -> None:
    with pytest.raises(AssertionError, match="Adapter NoChain must be a Chain"):

        class NoChain(Adapter[fl.Linear]):  # pyright: ignore[reportUnusedClass]
            pass


def test_an_adapter_may_derive_from_any_kind_of_chain() -> None:
    class ResidualAdapter(fl.Residual, Adapter[fl.Linear]):
        def __init__(self, target: fl.Linear) -> None:
            with self.setup_adapter(target):
                super().__init__(target)

    assert isinstance(ResidualAdapter(fl.Linear(1, 1)), fl.Residual)


def test_the_target_is_held_and_not_a_submodule_by_itself() -> None:
    class Replacing(fl.Chain, Adapter[fl.Linear]):
        def __init__(self, target: fl.Linear) -> None:
            with self.setup_adapter(target):
                super().__init__(fl.Identity())

    linear = fl.Linear(1, 1)
    adapter = Replacing(linear)
    assert adapter.target is linear and adapter._target == [linear]
    assert linear not in list(adapter.modules()) and adapter.state_dict() == {}


def test_the_chain_constructor_belongs_inside_the_setup() -> None:
    class Early(fl.Chain, Adapter[fl.Linear]):
        def __init__(self, target: fl.Linear, *children: fl.Module) -> None:
            super().__init__(*children)
            with self.setup_adapter(target):
                super().__init__(target)

    with pytest.raises(AssertionError, match="Call the Chain constructor in the setup_adapter context."):
        Early(fl.Linear(1, 1), fl.Identity())
    assert len(Early(fl.Linear(1, 1))) == 1, "a chain without children is fine"


def test_only_the_target_may_have_another_parent() -> None:
    target, other = fl.Chain(), fl.Chain()
    root = fl.Chain(target, other)

    class Greedy(fl.Chain, Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(target, other)

    with pytest.raises(AssertionError, match="Chain already has parent Chain"):
        Greedy(target)
    assert target.parent is root and other.parent is root
    assert target._can_refresh_parent, "the target stays adoptable after the error"


def test_construction_changes_nothing_in_the_tree(parent: fl.Chain) -> None:
    before = tree(parent)
    LeafAdapter(parent.layer("Linear", fl.Linear))
    adapter = ChainAdapter(parent.layer("Chain", fl.Chain))
    assert tree(parent) == before
    assert adapter.parent is None


def test_a_leaf_target_is_replaced_and_restored(parent: fl.Chain) -> None:
    before, x = tree(parent), torch.randn(1, 2)
    expected = parent(x)
    linear = parent.layer("Linear", fl.Linear)
    adapter = LeafAdapter(linear)
    assert adapter.inject(parent) is adapter
    assert adapter.parent is parent and adapter in parent and linear not in parent
    assert list(parent._modules) == ["LeafAdapter", "Chain"]
    adapter.eject()
    assert adapter.parent is None and linear in parent and adapter not in parent
    assert tree(parent) == before and torch.equal(parent(x), expected)


def test_a_leaf_target_is_searched_below_the_given_parent(parent: fl.Chain) -> None:
    inner = parent.layer("Chain", fl.Chain)
    adapter = LeafAdapter(inner.layer("Linear", fl.Linear)).inject(parent)
    assert adapter.parent is inner and list(inner._modules) == ["LeafAdapter", "ReLU"]


def test_a_target_that_is_not_below_the_parent_is_an_error(parent: fl.Chain) -> None:
    before = tree(parent)
    adapter = LeafAdapter(fl.Linear(1, 1))
    with pytest.raises(AssertionError, match="could not find"):
        adapter.inject(parent)
    assert tree(parent) == before and adapter.parent is None


def test_a_chain_target_is_replaced_and_restored(parent: fl.Chain) -> None:
    before = tree(parent)
    target = parent.layer("Chain", fl.Chain)
    adapter = ChainAdapter(target)
    assert target.parent is parent
    adapter.inject()
    place = adapter.layer("Passthrough", fl.Passthrough)
    assert adapter.parent is parent and target.parent is place
    assert list(parent._modules) == ["Linear", "ChainAdapter"]
    adapter.eject()
    assert target.parent is parent and adapter.parent is None and tree(parent) == before


def test_a_chain_target_directly_in_the_adapter_has_it_as_parent(parent: fl.Chain) -> None:
    class Direct(fl.Chain, Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(target)

    target = parent.layer("Chain", fl.Chain)
    adapter = Direct(target).inject()
    assert adapter.parent is parent and target.parent is adapter
    adapter.eject()
    assert target.parent is parent and adapter.parent is None


def test_a_target_without_a_place_in_the_adapter_is_an_orphan_while_injected(parent: fl.Chain) -> None:
    class Replacing(fl.Chain, Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(fl.Identity())

    target = parent.layer("Chain", fl.Chain)
    adapter = Replacing(target).inject(parent)
    assert target.parent is None and adapter.parent is parent
    adapter.eject()
    assert target.parent is parent and list(parent)[1] is target


def test_a_root_gets_its_place_in_the_adapter_as_parent() -> None:
    root = fl.Chain(fl.Linear(1, 1))
    adapter = ChainAdapter(root).inject()
    assert root.parent is adapter.layer("Passthrough", fl.Passthrough) and adapter.parent is None
    adapter.eject()
    assert root.parent is None


def test_an_adapter_keeps_its_children_and_can_be_injected_again(parent: fl.Chain) -> None:
    linear = parent.layer("Linear", fl.Linear)
    adapter = LeafAdapter(linear).inject(parent)
    adapter.eject()
    assert list(adapter) == [linear]
    adapter.inject(parent)
    assert adapter.parent is parent and linear not in parent


def test_keys_of_neighbours_follow() -> None:
    chain = fl.Chain(fl.Linear(1, 1), fl.Linear(1, 1))
    adapter = LeafAdapter(chain.layer(0, fl.Linear)).inject(chain)
    assert list(chain._modules) == ["LeafAdapter", "Linear"]
    adapter.eject()
    assert list(chain._modules) == ["Linear_1", "Linear_2"]


def test_contexts_of_the_new_ancestors_reach_an_injected_adapter() -> None:
    class Answer(fl.Chain, Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(fl.Lambda(lambda: 42), fl.SetContext("foo", "bar"))

    target = fl.Chain()
    chain = Declaring(target, fl.UseContext("foo", "bar"))
    Answer(target).inject()
    assert chain() == 42


def test_the_target_sees_the_contexts_that_the_adapter_declares(parent: fl.Chain) -> None:
    class Providing(fl.Chain, Adapter[fl.Chain]):
        def __init__(self, target: fl.Chain) -> None:
            with self.setup_adapter(target):
                super().__init__(target)

        def init_context(self) -> dict[str, dict[str, Any]]:
            return {"given": {"value": 7}}

    target = fl.Chain(fl.UseContext("given", "value"))
    root = fl.Chain(target)
    adapter = Providing(target).inject()
    assert root() == 7
    adapter.eject()
    assert target() == 7, "what the target saw last is not erased"


def test_a_structural_copy_of_a_leaf_adapter_keeps_the_shared_target(parent: fl.Chain) -> None:
    linear = parent.layer("Linear", fl.Linear)
    LeafAdapter(linear).inject(parent)
    copy = parent.structural_copy()
    adapter = copy.layer("LeafAdapter", LeafAdapter)
    assert adapter.parent is copy and adapter.target is linear and adapter is not parent.LeafAdapter
    adapter.eject()
    assert copy[0] is linear and parent.layer(0, LeafAdapter).parent is parent


def test_a_structural_copy_with_a_chain_adapter_is_refused_until_it_is_ejected(parent: fl.Chain) -> None:
    adapter = ChainAdapter(parent.layer("Chain", fl.Chain)).inject()
    with pytest.raises(RuntimeError, match=r"Chain adapters \(ChainAdapter.*\) typically cannot be copied, eject them"):
        parent.structural_copy()
    adapter.eject()
    assert len(parent.structural_copy()) == 2


def test_lookup_finds_the_outermost_adapter_around_a_target() -> None:
    linear = fl.Linear(1, 1)
    root = fl.Chain(linear)
    assert lookup_top_adapter(root, linear) is linear
    assert lookup_top_adapter(root, fl.Linear(1, 1)) is not linear
    first, second = LeafAdapter(linear), LeafAdapter(linear)
    first.inject(root)
    assert lookup_top_adapter(root, linear) is first
    second.inject(root)
    assert lookup_top_adapter(root, linear) is first
    assert lookup_top_adapter(first, linear) is second
    assert lookup_top_adapter(second, linear) is linear


def test_lookup_through_chains_that_are_no_adapters_gives_the_target() -> None:
    linear = fl.Linear(1, 1)
    assert lookup_top_adapter(fl.Chain(fl.Chain(linear)), linear) is linear


def test_lookup_in_a_broken_tree_is_an_error() -> None:
    linear = fl.Linear(1, 1)
    inner = fl.Chain(linear)
    root = fl.Chain(inner)
    inner._parent = []
    with pytest.raises(AssertionError, match="parent tree of Chain.* is broken"):
        lookup_top_adapter(root, linear)


def test_fl_adapter_is_the_adapter() -> None:
    assert fl.Adapter is Adapter
    assert "Adapter" not in fl.__all__
