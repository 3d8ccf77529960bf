"""Copies of the structure of a tree that share its weights."""

from typing import Any

import pytest
import torch
from torch import nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import structural_copy


class Net(fl.Chain):
    def __init__(self, *modules: fl.Module) -> None:
        self.number = 3
        self.items = ["a"]
        self.function = len
        super().__init__(*modules)
        self.late = {"key": 1}

    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"foo": {"bar": self.number}}


def test_leaves_are_shared_and_chains_copied() -> None:
    chain = fl.Chain(fl.Sum(fl.Linear(1, 1), fl.Linear(1, 1)), fl.ReLU())
    copy = chain.structural_copy()
    assert copy is not chain and copy.Sum is not chain.Sum and type(copy.Sum) is fl.Sum
    assert list(copy.Sum) == list(chain.Sum) and copy.ReLU is chain.ReLU
    assert copy.Sum.parent is copy and chain.Sum.parent is chain


def test_a_copy_computes_the_same() -> None:
    chain = fl.Chain(fl.Linear(2, 2), fl.Residual(fl.Linear(2, 2), fl.SiLU()), fl.Sum(fl.LayerNorm(2), fl.Identity()))
    x = torch.randn(3, 2)
    assert torch.equal(chain.structural_copy()(x), chain(x))


def test_context_modules_are_copied() -> None:
    chain = Net(fl.UseContext("foo", "bar"), fl.SetContext("foo", "bar"))
    copy = chain.structural_copy()
    for copied, original in zip(copy, chain):
        assert copied is not original and str(copied) == str(original)
        assert isinstance(copied, fl.ContextModule) and copied.parent is copy
    assert chain[0].parent is chain


def test_each_copy_is_a_new_one() -> None:
    chain = fl.Chain(fl.Chain(fl.Identity()))
    first, second = chain.structural_copy(), chain.structural_copy()
    assert first is not second and first[0] is not second[0]
    assert first.structural_copy() is not first


def test_methods_of_copied_modules_are_those_of_the_copies() -> None:
    class Counting(fl.Chain):
        def __init__(self) -> None:
            super().__init__(fl.Lambda(self.count))
            self.times = 0

        def count(self, x: int) -> int:
            self.times += 1
            return x

    outside = Counting()
    chain = fl.Chain(Counting(), fl.Lambda(outside.count))
    copy = chain.structural_copy()
    copy(1)
    assert copy.Counting.times == 1 and chain.Counting.times == 0
    assert copy.Lambda is chain.Lambda and outside.times == 1


def test_copies_of_attention_write_their_own_contexts() -> None:
    chain = fl.Chain(fl.SelfAttention2d(4), fl.Identity())
    copy, x = chain.structural_copy(), torch.randn(1, 4, 2, 3)
    seen: list[object] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(chain[0].use_context("reshape")["height"])
        return x

    chain[0].use_context("reshape")["height"] = "untouched"
    copy.layer(0, fl.Chain).insert(1, fl.Lambda(look))
    assert copy(x).shape == x.shape and seen == ["untouched"]


def test_keys_are_those_of_the_original() -> None:
    chain = fl.Chain(fl.Identity(), fl.Chain(), fl.Identity())
    assert list(chain.structural_copy()._modules) == ["Identity_1", "Chain", "Identity_2"]


def test_the_root_of_a_copy_has_no_parent() -> None:
    root = fl.Chain(fl.Chain(fl.Identity()))
    inner = root.layer(0, fl.Chain)
    assert inner.structural_copy().parent is None and inner.parent is root


def test_the_constructor_does_not_run_and_attributes_are_carried_over_by_reference() -> None:
    net = Net(fl.Identity())
    net.number = 5
    copy = net.structural_copy()
    assert copy.number == 5 and copy.function is len
    assert copy.items is net.items and copy.late is net.late


def test_private_attributes_dtypes_devices_and_tensors_are_carried_over() -> None:
    net = Net(fl.Identity())
    net._secret = 7
    net.weight_dtype = torch.float16
    net.weight_device = torch.device("cpu")
    copy = net.structural_copy()
    assert (copy._secret, copy.weight_dtype, copy.weight_device) == (7, torch.float16, torch.device("cpu"))


def test_direct_parameters_are_shared() -> None:
    net = Net(fl.Identity())
    net.scale = nn.Parameter(torch.ones(1))
    assert net.structural_copy().scale is net.scale


def test_the_mode_is_kept_and_hooks_are_not() -> None:
    net = Net(fl.Chain())
    net.register_forward_hook(lambda *_: None)
    net.eval()
    copy = net.structural_copy()
    assert not any(module.training for module in copy.modules())
    assert not copy._forward_hooks and net._forward_hooks


def test_contexts_of_a_copy_start_from_init_context_and_are_its_own() -> None:
    net = Net(fl.Chain(fl.UseContext("foo", "bar")))
    net.set_context("foo", {"bar": 10})
    copy = net.structural_copy()
    assert copy.use_context("foo") == {"bar": 3}
    copy.set_context("foo", {"bar": 20})
    assert copy(0) == 20 and net(0) == 10


def test_copies_of_use_context_keep_their_function() -> None:
    net = Net(fl.UseContext("foo", "bar").compose(lambda x: x + 1))
    assert net.structural_copy()(0) == 4


def test_the_function_copies_context_modules_and_returns_others() -> None:
    linear, chain = fl.Linear(1, 1), fl.Chain(fl.Identity())
    assert structural_copy(linear) is linear
    copy = structural_copy(chain)
    assert copy is not chain and list(copy) == list(chain)


def test_a_copy_can_be_edited_without_touching_the_original() -> None:
    chain = fl.Chain(fl.Sum(fl.Identity(), fl.ReLU()))
    copy = chain.structural_copy()
    copy.layer("Sum", fl.Sum).pop()
    copy.append(fl.SiLU())
    assert len(chain) == 1 and len(chain.layer("Sum", fl.Sum)) == 2


def test_hooks_of_structural_copy_run_before_and_after() -> None:
    calls: list[tuple[str, object, int]] = []

    class Observed(fl.Chain):
        def _pre_structural_copy(self) -> None:
            calls.append(("pre", self, len(self)))

        def _post_structural_copy(self, source: "Observed") -> None:
            calls.append(("post", source, len(self)))

    chain = Observed(fl.Identity())
    copy = chain.structural_copy()
    assert calls == [("pre", chain, 1), ("post", chain, 1)]
    assert isinstance(copy, Observed)


def test_an_error_before_copying_leaves_the_original_as_it_was() -> None:
    class Refusing(fl.Chain):
        def _pre_structural_copy(self) -> None:
            raise RuntimeError("not now")

    chain = fl.Chain(fl.Chain(), Refusing())
    with pytest.raises(RuntimeError, match="not now"):
        chain.structural_copy()
    assert [child.parent for child in chain] == [chain, chain]
    chain.pop()
    assert len(chain.structural_copy()) == 1


def test_a_module_that_appears_twice_appears_twice_in_the_copy() -> None:
    inner = fl.Chain(fl.Lambda(lambda x: x + 1))
    copy = fl.Chain(inner, inner).structural_copy()
    assert copy(0) == 2 and len(copy) == 2
