"""Saving and deep-copying trees."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.utils import load_tensors


class Net(fl.Chain):
    def init_context(self) -> dict[str, dict[str, int]]:
        return {"foo": {"bar": 3}}


def test_a_saved_chain_comes_back_with_its_parents(tmp_path: Path) -> None:
    chain = fl.Chain(fl.Sum(fl.Linear(2, 2), fl.Linear(2, 2)), fl.ReLU())
    torch.save(chain, tmp_path / "chain.pt")
    loaded = torch.load(tmp_path / "chain.pt", weights_only=False)
    x = torch.randn(1, 2)
    assert torch.equal(loaded(x), chain(x))
    assert loaded.Sum.parent is loaded and loaded.parent is None
    assert list(loaded._modules) == ["Sum", "ReLU"]


def test_a_saved_chain_is_not_a_file_of_tensors(tmp_path: Path) -> None:
    torch.save(fl.Chain(fl.Linear(1, 1)), tmp_path / "chain.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_tensors(tmp_path / "chain.pt")


def test_chains_with_context_layers_can_be_pickled() -> None:
    chain = Net(fl.Chain(fl.SetContext("foo", "bar")), fl.UseContext("foo", "bar"))
    loaded = pickle.loads(pickle.dumps(chain))
    assert loaded(5) == 5
    assert loaded.use_context("foo") == {"bar": 3}
    assert loaded.Chain.SetContext.parent is loaded.Chain and loaded.Chain.parent is loaded
    loaded.set_context("foo", {"bar": 7})
    assert chain.use_context("foo") == {"bar": 3}


def test_chains_with_local_functions_cannot_be_pickled() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(fl.Chain(fl.Lambda(lambda x: x)))


def test_a_deep_copy_has_weights_and_parents_of_its_own() -> None:
    chain = Net(fl.Chain(fl.Linear(2, 2), fl.UseContext("foo", "bar")))
    twin = copy.deepcopy(chain)
    assert twin.Chain is not chain.Chain and twin.Chain.parent is twin and chain.Chain.parent is chain
    assert twin.Chain.UseContext.parent is twin.Chain
    assert twin.Chain.Linear.weight is not chain.Chain.Linear.weight
    assert torch.equal(twin.Chain.Linear.weight, chain.Chain.Linear.weight)
    assert twin(torch.zeros(1, 2)) == 3


def test_contexts_of_a_deep_copy_are_its_own() -> None:
    chain = Net(fl.Chain(fl.UseContext("foo", "bar")))
    twin = copy.deepcopy(chain)
    twin.set_context("foo", {"bar": 4})
    assert chain.use_context("foo") == {"bar": 3} and twin(0) == 4 and chain(0) == 3


def test_a_deep_copy_of_an_inner_chain_leaves_the_tree_behind() -> None:
    inner = fl.Chain(fl.Linear(1, 1))
    root = Net(fl.Linear(64, 64), inner)
    twin = copy.deepcopy(inner)
    assert twin.parent is None and inner.parent is root
    assert len(pickle.dumps(twin)) < 10_000
    assert len(pickle.dumps(inner)) < 10_000
