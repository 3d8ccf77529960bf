"""`LoraAdapter` gives what its children give, whichever way it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.ops import lora_block_cache

X = torch.randn(2, 3, 8)


def make_adapter(dtype: torch.dtype = torch.float32, rank: int = 4) -> LoraAdapter:
    lora = LinearLora("style", in_features=8, out_features=6, rank=rank, dtype=dtype)
    torch.nn.init.normal_(lora.up.weight)
    return LoraAdapter(fl.Linear(8, 6, dtype=dtype), lora)


def children(adapter: LoraAdapter, x: Tensor) -> Tensor:
    return fl.Sum.forward(adapter, x)


def lora_of(adapter: LoraAdapter) -> LinearLora:
    return adapter.ensure_find(LinearLora)


def test_training_after_inference_mode() -> None:
    adapter = make_adapter()
    with torch.inference_mode():
        adapter(X)
    adapter(X).sum().backward()
    assert lora_of(adapter).up.weight.grad is not None


def test_a_changed_scale_between_forward_and_backward_spares_the_gradient() -> None:
    adapter = make_adapter()
    with torch.no_grad():
        adapter(X)
    y = adapter(X)
    with torch.no_grad():
        adapter.scale = {"style": 2.0}
        adapter(X)
    y.sum().backward()
    twin = make_adapter()
    twin.load_state_dict(adapter.state_dict())
    children(twin, X).sum().backward()
    torch.testing.assert_close(lora_of(adapter).up.weight.grad, lora_of(twin).up.weight.grad)


def test_a_changed_scale_stays_in_the_tensor_that_a_captured_graph_reads() -> None:
    adapter = make_adapter()
    with torch.no_grad():
        adapter(X)
        before: Any = adapter._multipliers._kept[False]
        adapter.scale = {"style": 2.0}
        torch.testing.assert_close(adapter(X), children(adapter, X))
        after: Any = adapter._multipliers._kept[False]
    assert after[1] is before[1]
    assert after[1].tolist() == [2.0]


def test_training_makes_the_scale_tensor_once_and_never_writes_into_it() -> None:
    adapter = make_adapter()
    adapter(X)
    kept = adapter._multipliers._kept[True][1]
    y = adapter(X)
    assert adapter._multipliers._kept[True][1] is kept
    adapter.scale = {"style": 2.0}
    torch.testing.assert_close(adapter(X), children(adapter, X))
    assert kept.tolist() == [1.0]
    y.sum().backward()


def test_tracing_with_fake_tensors_leaves_nothing_behind() -> None:
    adapter = make_adapter()
    with torch.no_grad():
        make_fx(adapter, tracing_mode="fake", _allow_non_fake_inputs=True)(X)
        assert type(adapter(X)) is Tensor


@pytest.mark.parametrize(
    "scale", [torch.tensor(0.5), torch.tensor([0.5, 2.0]), torch.rand(2, 3)], ids=["0-d", "1", "2"]
)
def test_tensor_scales_agree_with_the_children(scale: Tensor) -> None:
    adapter = make_adapter()
    adapter.scale = {"style": scale}
    torch.testing.assert_close(adapter(X), children(adapter, X))


@pytest.mark.parametrize("shape", [(), (2,)], ids=str)
def test_tensor_scales_have_gradients_on_both_ways(shape: tuple[int, ...]) -> None:
    grads: list[Tensor] = []
    for way in (make_adapter().__class__.__call__, children):
        torch.manual_seed(0)
        adapter = make_adapter()
        scale = torch.ones(shape, requires_grad=True)
        adapter.scale = {"style": scale}
        grads += torch.autograd.grad(way(adapter, X).square().sum(), scale)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads)


def test_float64_loses_nothing() -> None:
    adapter = make_adapter(torch.float64)
    adapter.scale = {"style": 0.1}
    torch.testing.assert_close(adapter(X.double()), children(adapter, X.double()), atol=1e-14, rtol=1e-14)


def test_a_row_scale_applies_to_an_edited_update() -> None:
    adapter = make_adapter()
    lora = lora_of(adapter)
    lora.insert(1, fl.Lambda(lambda x: 2 * x))
    lora.scale = torch.tensor([1.0, 3.0])
    update = lora.Linear_2(lora.Linear_1(X))
    expected = adapter.target(X) + torch.tensor([2.0, 6.0])[:, None, None] * update
    torch.testing.assert_close(adapter(X), expected)


def test_a_replaced_forward_is_called() -> None:
    adapter = make_adapter()
    adapter.target.forward = lambda x: torch.zeros(*x.shape[:-1], 6)  # as libraries that move weights around do
    torch.testing.assert_close(adapter(X), lora_of(adapter)(X))


def test_global_hooks_see_every_child() -> None:
    adapter, seen = make_adapter(), list[str]()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    adapter(X)
    handle.remove()
    assert seen == ["Linear", "Linear", "Linear", "Multiply", "LinearLora", "LoraAdapter"]


def test_meta_tensors_give_a_shape() -> None:
    adapter = make_adapter().to("meta")
    assert adapter(X.to("meta")).shape == (2, 3, 6)


def test_integers_fail_as_they_do_in_the_layer() -> None:
    with pytest.raises(RuntimeError):
        make_adapter()(torch.ones(2, 8, dtype=torch.int64))


def test_ejecting_drops_the_prepared_block() -> None:
    adapter = make_adapter()
    parent = fl.Chain(adapter.target)
    adapter.inject(parent)
    with torch.no_grad():
        assert lora_block_cache.get(adapter.target.weight, [lora_of(adapter).up.weight]) is not None
    before = len(lora_block_cache)
    adapter.eject()
    assert len(lora_block_cache) == before - 1


@pytest.mark.parametrize("edit", ["scale", "subclass", "removed"])
def test_a_structural_copy_of_an_edited_update_computes_the_same(edit: str) -> None:
    class Sevenfold(fl.Multiply):
        def forward(self, x: Tensor) -> Tensor:
            return 7 * x

    adapter = make_adapter()
    lora = lora_of(adapter)
    if edit == "scale":
        lora.ensure_find(fl.Multiply).scale = 3.0
    elif edit == "subclass":
        lora.replace(lora.ensure_find(fl.Multiply), Sevenfold())
    else:
        lora.pop()
    tree = fl.Chain(adapter)
    torch.testing.assert_close(tree.structural_copy()(X), tree(X))


def test_an_update_is_in_one_place() -> None:
    first, second = make_adapter(), make_adapter()
    lora = LinearLora("other", in_features=8, out_features=6)
    first.add_lora(lora)
    with pytest.raises(AssertionError, match="already has parent LoraAdapter"):
        second.add_lora(lora)
    assert lora.parent is first
    assert second.names == ["style"]
