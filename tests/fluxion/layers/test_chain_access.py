"""Reaching the children of a chain, and finding out which chain holds a module."""

import pytest
import torch

import refiners.fluxion.layers as fl


@pytest.fixture
def chain() -> fl.Chain:
    return fl.Chain(
        fl.Sum(fl.Identity(), fl.Chain(fl.Linear(1, 1)), fl.Chain(fl.Linear(1, 2))),
        fl.Linear(1, 1),
        fl.Linear(1, 1),
        fl.ReLU(),
    )


def test_children_are_attributes(chain: fl.Chain) -> None:
    assert chain.Sum is chain[0] and chain.Linear_2 is chain[2]
    with pytest.raises(AttributeError):
        _ = chain.Linear_3


def test_children_are_reached_by_key(chain: fl.Chain) -> None:
    assert chain["Linear_2"] == chain.Linear_2
    with pytest.raises(KeyError):
        chain["Linear_3"]


def test_children_are_reached_by_index_as_in_a_list(chain: fl.Chain) -> None:
    assert chain[0] is chain.Sum and chain[-1] is chain.ReLU and chain[-4] is chain.Sum
    for index in (4, -5):
        with pytest.raises(IndexError):
            chain[index]


def test_a_slice_is_a_structural_copy_of_some_children() -> None:
    class Net(fl.Chain):
        pass

    net = Net(fl.Linear(1, 2), fl.ReLU(), fl.Chain(fl.Linear(2, 3)), fl.Linear(3, 4), fl.ReLU())
    part = net[1:4]
    assert type(part) is Net
    assert len(part) == 3 and len(net) == 5
    assert list(part._modules) == ["ReLU", "Chain", "Linear"]
    assert part.Linear is net.Linear_2 and part.Chain is not net.Chain
    assert part.Chain.parent is part and net.Chain.parent is net
    assert net[:-1](torch.zeros(3, 1)).shape == (3, 4)
    assert len(net[::2]) == 3 and len(net[2:2]) == 0


def test_a_slice_fails_where_a_structural_copy_does() -> None:
    class NotCopied(fl.Chain):
        def _pre_structural_copy(self) -> None:
            raise RuntimeError("not to be copied")

    with pytest.raises(RuntimeError, match="not to be copied"):
        fl.Chain(NotCopied(), fl.Identity())[1:]


def test_iteration_and_length_are_those_of_the_children(chain: fl.Chain) -> None:
    assert [type(child) for child in chain] == [fl.Sum, fl.Linear, fl.Linear, fl.ReLU]
    assert len(chain) == 4


def test_an_empty_chain_is_falsy() -> None:
    assert not fl.Chain() and fl.Chain(fl.Identity())


def test_containment_is_direct_and_by_identity(chain: fl.Chain) -> None:
    assert chain.Sum in chain and chain.Linear_1 in chain
    assert chain.Sum.Identity not in chain
    assert fl.ReLU() not in chain


def test_layer_by_index_and_key(chain: fl.Chain) -> None:
    assert chain.layer(1, fl.Linear) is chain.Linear_1
    assert chain.layer("ReLU", fl.ReLU) is chain.ReLU
    assert chain.layer("Sum", fl.Chain) is chain.Sum, "the type may be a base class"
    assert chain.layer("Sum") is chain.Sum


def test_layer_by_path(chain: fl.Chain) -> None:
    assert chain.layer((0, 1), fl.Chain) is chain.Sum.Chain_1
    assert chain.layer((0, "Chain_2"), fl.Chain) is chain.Sum.Chain_2
    assert chain.layer(("Sum", "Chain_2"), fl.Chain) is chain.Sum.Chain_2
    assert chain.layer(["Sum", "Chain_2", 0], fl.Linear) is chain.Sum.Chain_2.Linear
    assert chain.layer((), fl.Chain) is chain


def test_layer_of_another_type_is_an_error(chain: fl.Chain) -> None:
    with pytest.raises(AssertionError, match=r"layer 1 is <class '.*Linear'>, not <class '.*Conv2d'>"):
        chain.layer(1, fl.Conv2d)
    with pytest.raises(AssertionError, match="not <class '.*Conv2d'>"):
        chain.layer(("Sum", "Chain_2"), fl.Conv2d)
    with pytest.raises(AssertionError, match="layer is <class '.*Chain'>, not <class '.*Sum'>"):
        chain.layer((), fl.Sum)


def test_the_intermediate_layers_of_a_path_are_chains(chain: fl.Chain) -> None:
    with pytest.raises(AssertionError, match="not <class '.*Chain'>"):
        chain.layer((1, 0), fl.Module)


def test_a_missing_layer_is_a_key_or_index_error(chain: fl.Chain) -> None:
    for missing in ("Conv2d", ("Sum", "Conv2d")):
        with pytest.raises(KeyError):
            chain.layer(missing)
    for missing in (7, (0, 7)):
        with pytest.raises(IndexError):
            chain.layer(missing)


def test_device_and_dtype_are_those_of_the_first_weighted_module() -> None:
    chain = fl.Chain(
        fl.Identity(),
        fl.Chain(fl.Linear(1, 1, device="meta", dtype=torch.float64)),
        fl.Linear(1, 1),
    )
    assert chain.device == torch.device("meta") and chain.dtype == torch.float64


def test_without_weights_there_is_no_device_and_no_dtype() -> None:
    chain = fl.Chain(fl.Identity())
    assert chain.device is None and chain.dtype is None


def test_find_parent_is_the_chain_that_holds_the_module(chain: fl.Chain) -> None:
    assert chain.find_parent(chain.ReLU) is chain
    assert chain.find_parent(chain.Sum.Chain_2.Linear) is chain.Sum.Chain_2
    assert chain.find_parent(fl.Linear(1, 1)) is None
    assert chain.find_parent(chain) is None


def test_find_parent_searches_chains_only() -> None:
    activation = fl.SiLU()
    assert fl.Chain(fl.GLU(activation)).find_parent(activation) is None


def test_ensure_find_parent_is_an_error_for_a_foreign_module(chain: fl.Chain) -> None:
    assert chain.ensure_find_parent(chain.Sum.Identity) is chain.Sum
    with pytest.raises(AssertionError, match="could not find Sigmoid.* in Chain"):
        chain.ensure_find_parent(fl.Sigmoid())
