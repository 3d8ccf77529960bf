"""`LoraAdapter` computes what its children do after they were edited in ways that torch allows."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter

X = torch.randn(2, 3, 8)


def make_adapter() -> LoraAdapter:
    lora = LinearLora("style", in_features=8, out_features=6, rank=4)
    nn.init.normal_(lora.up.weight)
    return LoraAdapter(fl.Linear(8, 6), lora)


def agrees(adapter: LoraAdapter) -> bool:
    return torch.allclose(adapter(X), fl.Sum.forward(adapter, X), atol=1e-5)


def multiply_of(adapter: LoraAdapter) -> fl.Multiply:
    return adapter.ensure_find(LinearLora).ensure_find(fl.Multiply)


def make_tree() -> fl.Chain:
    tree = fl.Chain(fl.Linear(8, 6))
    lora = LinearLora("style", in_features=8, out_features=6, rank=4)
    nn.init.normal_(lora.up.weight)
    LoraAdapter(tree.layer(0, fl.Linear), lora).inject(tree)
    return tree


def test_a_structural_copy_has_scales_of_its_own() -> None:
    tree = make_tree()
    with torch.no_grad():
        before = tree(X)
        clone = tree.structural_copy()
        clone.ensure_find(LoraAdapter).scale = {"style": 3.0}
        assert not torch.equal(clone(X), before)
        assert torch.equal(tree(X), before)


def test_copies_with_other_scales_run_in_threads() -> None:
    tree = make_tree()
    scales = [0.25 * index for index in range(8)]
    with torch.no_grad():
        tree(X)
        copies = [tree.structural_copy() for _ in scales]
        for clone, scale in zip(copies, scales):
            clone.ensure_find(LoraAdapter).scale = {"style": scale}
        expected = [fl.Sum.forward(clone.ensure_find(LoraAdapter), X) for clone in copies]
    wrong: list[int] = []

    def run(index: int) -> None:
        with torch.no_grad():
            for _ in range(250):
                if not torch.allclose(copies[index](X), expected[index], atol=1e-5):
                    wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bias_that_became_a_buffer_counts() -> None:
    adapter = make_adapter()
    target = adapter.target
    del target.bias
    target.register_buffer("bias", torch.full((6,), 5.0))
    assert agrees(adapter)


def test_a_bias_of_the_update_counts() -> None:
    adapter = make_adapter()
    down = adapter.ensure_find(LinearLora).down
    del down.bias
    down.register_buffer("bias", torch.ones(4))
    assert agrees(adapter)


def test_a_learnable_scale_counts_and_learns() -> None:
    adapter = make_adapter()
    multiply_of(adapter).scale = nn.Parameter(torch.tensor(0.5))
    assert agrees(adapter)
    adapter(X).sum().backward()
    scale = multiply_of(adapter).scale
    assert isinstance(scale, Tensor)
    assert scale.grad is not None


def test_a_scale_of_the_multiplication_alone_counts() -> None:
    adapter = make_adapter()
    multiply_of(adapter).scale = torch.tensor([0.5, 2.0])
    assert agrees(adapter)
    multiply_of(adapter).scale = 3.0
    assert agrees(adapter)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode_differentiation_leaves_nothing_behind() -> None:
    adapter = make_adapter()
    with torch.no_grad():
        torch.func.jvp(adapter, (X,), (X,))
        adapter(X)
    assert torch.equal(copy.deepcopy(adapter)(X), adapter(X))
    assert torch.equal(pickle.loads(pickle.dumps(adapter))(X), adapter(X))


class Halved(Tensor):
    """A weight with a linear layer of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [a.as_subclass(Tensor) if isinstance(a, Halved) else a for a in args]
        y = func(*plain, **(kwargs or {}))
        return y / 2 if func is nn.functional.linear else y


def test_a_weight_of_another_class_keeps_its_own_linear_layer() -> None:
    adapter = make_adapter()
    adapter.target._parameters["weight"] = torch.randn(6, 8).as_subclass(Halved)
    assert agrees(adapter)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "scale must be a dict of multipliers by name, got float"),
        ({"style": "1"}, "the scale of 'style' must be a number or a tensor, got str"),
    ],
)
def test_a_scale_of_another_type_is_refused(value: Any, message: str) -> None:
    adapter = make_adapter()
    with pytest.raises(TypeError, match=message):
        adapter.scale = value
    assert adapter.scale == {"style": 1.0}
