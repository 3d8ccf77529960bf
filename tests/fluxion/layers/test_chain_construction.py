"""Building chains, and the keys of their children."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import generate_unique_names


def keys(chain: fl.Chain) -> list[str]:
    return list(chain._modules.keys())


def test_every_positional_argument_is_a_child() -> None:
    children = [fl.Identity(), fl.ReLU()]
    assert list(fl.Chain(*children)) == children
    assert list(fl.Chain()) == []


@pytest.mark.parametrize("make", [list, tuple, iter, nn.ModuleList, lambda children: nn.Sequential(*children)])
def test_a_single_iterable_gives_the_children(make: Callable[[list[fl.Module]], Iterable[fl.Module]]) -> None:
    children: list[fl.Module] = [fl.Identity(), fl.ReLU()]
    assert list(fl.Chain(make(children))) == children


def test_a_single_chain_is_a_child() -> None:
    inner = fl.Chain(fl.Identity())
    assert list(fl.Chain(inner)) == [inner]


def test_children_may_be_modules_of_torch() -> None:
    linear = nn.Linear(1, 1)
    assert list(fl.Chain(fl.Identity(), linear))[1] is linear


@pytest.mark.parametrize("children", [(fl.Identity(), 3), ([fl.Identity(), 3],)], ids=["arguments", "a list"])
def test_a_child_that_is_no_module_is_refused(children: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="Chain: child 1 must be a module, got int"):
        fl.Chain(*children)  # pyright: ignore[reportArgumentType]


def test_construction_sets_the_parents_of_context_modules() -> None:
    inner, use = fl.Chain(), fl.UseContext("a", "b")
    chain = fl.Chain(inner, use)
    assert inner.parent is chain and use.parent is chain


def test_a_child_with_another_parent_is_refused() -> None:
    inner = fl.Sum()
    former = fl.Passthrough(inner)
    with pytest.raises(AssertionError, match="Sum already has parent Passthrough"):
        fl.Chain(inner)
    assert inner.parent is former


def test_a_child_whose_parent_is_not_refreshed_may_be_anywhere() -> None:
    inner = fl.Sum()
    former = fl.Passthrough(inner)
    with inner.no_parent_refresh():
        chain = fl.Chain(inner)
    assert inner in chain and inner.parent is former


def test_plain_leaves_may_be_shared_between_chains_and_within_one() -> None:
    linear = fl.Linear(1, 1)
    first, second = fl.Chain(linear, linear), fl.Chain(linear)
    assert list(first) == [linear, linear] and list(second) == [linear]
    assert keys(first) == ["Linear_1", "Linear_2"]


def test_a_context_module_may_appear_twice_in_one_chain() -> None:
    inner = fl.Chain(fl.Lambda(lambda x: x + 1))
    chain = fl.Chain(inner, inner)
    assert inner.parent is chain
    assert chain(1) == 3


def test_init_context_runs_once_attributes_are_set_and_before_children_have_parents() -> None:
    seen: list[object] = []

    class Declaring(fl.Chain):
        def __init__(self, child: fl.Chain) -> None:
            self.default = 42
            self.child_in_list = [child]
            super().__init__(child)

        def init_context(self) -> dict[str, dict[str, int]]:
            seen.append(self.child_in_list[0].parent)
            return {"foo": {"bar": self.default}}

    child = fl.Chain()
    chain = Declaring(child)
    assert seen == [None]
    assert chain.use_context("foo") == child.use_context("foo") == {"bar": 42}


def test_the_constructor_may_be_called_again_with_other_children() -> None:
    class Late(fl.Chain):
        def __init__(self) -> None:
            super().__init__()
            self.size = len(self)
            super().__init__(fl.Identity(), fl.Chain())

    chain = Late()
    assert chain.size == 0
    assert keys(chain) == ["Identity", "Chain"]
    assert chain.layer("Chain", fl.Chain).parent is chain


def test_children_of_the_first_constructor_make_way_for_those_of_the_second() -> None:
    class Twice(fl.Chain):
        def __init__(self, first: fl.Chain, second: fl.Chain) -> None:
            super().__init__(first)
            super().__init__(second)

    first, second = fl.Chain(), fl.Chain()
    chain = Twice(first, second)
    assert list(chain) == [second] and second.parent is chain and first.parent is None


def test_plain_attributes_may_come_before_the_constructor_but_not_parameters() -> None:
    class Early(fl.Chain):
        def __init__(self, with_parameter: bool) -> None:
            self.number = 1
            self.tensor = torch.zeros(1)
            self.items = [1, 2]
            if with_parameter:
                self.weight = nn.Parameter(torch.zeros(1))
            super().__init__()

    chain = Early(with_parameter=False)
    assert (chain.number, chain.items) == (1, [1, 2]) and isinstance(chain.tensor, Tensor)
    with pytest.raises(AttributeError):
        Early(with_parameter=True)


def test_assigning_a_module_is_refused_and_registers_nothing() -> None:
    chain = fl.Chain(fl.Identity())
    with pytest.raises(ValueError, match=r"(?s)one-element list"):
        chain.foo = fl.Linear(1, 1)
    with pytest.raises(ValueError, match="one-element list"):
        chain.Identity = nn.ReLU()
    assert keys(chain) == ["Identity"] and not hasattr(chain, "foo")


def test_a_list_hides_a_module_from_the_tree() -> None:
    chain = fl.Chain()
    chain.hidden = [fl.Linear(1, 1)]
    assert keys(chain) == [] and chain.state_dict() == {} and list(chain.modules()) == [chain]


def test_an_assigned_parameter_is_registered_under_its_name() -> None:
    chain = fl.Chain(fl.Identity())
    chain.weight = nn.Parameter(torch.zeros(1))
    assert list(chain.state_dict()) == ["weight"]


def test_a_lone_child_of_a_class_has_the_name_of_the_class_and_several_are_numbered() -> None:
    chain = fl.Chain(fl.Linear(1, 1), fl.ReLU(), fl.Linear(1, 1), fl.Chain())
    assert keys(chain) == ["Linear_1", "ReLU", "Linear_2", "Chain"]


def test_keys_go_by_the_name_of_the_class() -> None:
    class Linear(fl.Module):
        pass

    assert keys(fl.Chain(fl.Linear(1, 1), Linear(), nn.Linear(1, 1))) == ["Linear_1", "Linear_2", "Linear_3"]


@pytest.mark.parametrize(
    "names,expected",
    [
        ("A A A_1", "A_1 A_2 A_1_1"),
        ("A_1 A A", "A_1_1 A_1 A_2"),
        ("A A_2 A", "A_1 A_2_1 A_2"),
        ("A A A_1 A_1_1", "A_1 A_2 A_1_1 A_1_1_1"),
        ("A_1_1 A_1 A A", "A_1_1_1 A_1_1 A_1 A_2"),
        # No key is taken twice: these stay as they are.
        ("A A_1", "A A_1"),
        ("A A A_3", "A_1 A_2 A_3"),
        ("A A A_01", "A_1 A_2 A_01"),
        ("A A A_1 A_1", "A_1 A_2 A_1_1 A_1_2"),
    ],
)
def test_a_class_named_like_the_key_of_another_child_is_numbered(names: str, expected: str) -> None:
    children = [type(name, (fl.Module,), {})() for name in names.split()]
    chain = fl.Chain(children)
    assert keys(chain) == expected.split()
    assert list(chain) == children


def test_generate_unique_names_maps_keys_to_modules() -> None:
    first, activation, second = fl.Linear(1, 1), fl.ReLU(), fl.Linear(1, 1)
    names = generate_unique_names((first, activation, second))
    assert list(names.items()) == [("Linear_1", first), ("ReLU", activation), ("Linear_2", second)]


def test_state_dict_keys_are_the_keys_joined_without_the_root() -> None:
    chain = fl.Chain(fl.Sum(fl.Linear(1, 1), fl.Linear(1, 1, bias=False)))
    assert list(chain.state_dict()) == ["Sum.Linear_1.weight", "Sum.Linear_1.bias", "Sum.Linear_2.weight"]


def test_the_children_live_in_an_ordered_dict_of_modules() -> None:
    identity, relu = fl.Identity(), fl.ReLU()
    chain = fl.Chain(identity, relu)
    assert isinstance(chain._modules, dict)
    assert list(chain._modules.items()) == [("Identity", identity), ("ReLU", relu)]


def test_construction_draws_random_numbers_in_order_as_torch_does() -> None:
    torch.manual_seed(0)
    chain = fl.Chain(fl.Linear(2, 3), fl.Conv2d(2, 3, 3), fl.Linear(3, 2))
    torch.manual_seed(0)
    expected = nn.Linear(2, 3), nn.Conv2d(2, 3, 3), nn.Linear(3, 2)
    for ours, theirs in zip(chain, expected):
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
