"""Several low-rank updates on one layer."""

from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Conv2dLora, LinearLora, Lora, LoraAdapter
from refiners.fluxion.adapters.lora import LayerUpdate, LowRankFactors, WeightUpdate

LAYER = fl.Linear(6, 5)


def make_lora(name: str, scale: float = 1.0, rank: int = 4) -> LinearLora:
    lora = LinearLora(name, 6, 5, rank=rank, scale=scale)
    lora.load_weights(torch.randn(rank, 6), torch.randn(5, rank))
    return lora


@pytest.fixture
def adapter() -> LoraAdapter:
    return LoraAdapter(fl.Linear(6, 5), make_lora("foo", 2.0), make_lora("bar", -1.0, rank=3))


def reference(adapter: LoraAdapter, x: torch.Tensor) -> torch.Tensor:
    total = torch.nn.functional.linear(x, adapter.target.weight, getattr(adapter.target, "bias", None))
    for lora in adapter.lora_layers:
        total = total + lora.scale * (x @ lora.down.weight.T) @ lora.up.weight.T
    return total


def test_the_target_comes_first_and_the_loras_after(adapter: LoraAdapter) -> None:
    assert isinstance(adapter, fl.Sum)
    assert list(adapter._modules) == ["Linear", "LinearLora_1", "LinearLora_2"]
    assert adapter[0] is adapter.target
    assert list(LoraAdapter(fl.Linear(6, 5), make_lora("foo"))._modules) == ["Linear", "LinearLora"]


def test_the_printed_tree() -> None:
    adapter = LoraAdapter(fl.Linear(6, 5), make_lora("foo"))
    assert repr(adapter).splitlines()[0] == "(SUM) LoraAdapter()"
    assert "    └── (CHAIN) LinearLora(in_features=6, out_features=5" in repr(adapter)


def test_the_output_is_the_sum(adapter: LoraAdapter) -> None:
    for shape in ((6,), (3, 6), (2, 3, 6), (0, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(adapter(x), reference(adapter, x))


def test_a_layer_without_bias_is_adapted_too() -> None:
    adapter = LoraAdapter(fl.Linear(6, 5, bias=False), make_lora("foo"))
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapter(x), reference(adapter, x))


def test_the_output_is_that_of_the_children_called_one_by_one(adapter: LoraAdapter) -> None:
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapter(x), fl.Sum.forward(adapter, x))


def test_edited_adapters_run_their_children(adapter: LoraAdapter) -> None:
    x = torch.randn(3, 6)
    expected = adapter(x)
    adapter.layer("LinearLora_1", LinearLora).append(fl.Lambda(lambda y: y + 1))
    torch.testing.assert_close(adapter(x), expected + 1)
    adapter.insert(1, fl.Lambda(lambda x: torch.ones(3, 5)))
    torch.testing.assert_close(adapter(x), expected + 2)


def test_hooks_on_the_children_run(adapter: LoraAdapter) -> None:
    seen: list[str] = []
    for module in adapter.modules():
        if module is not adapter:
            module.register_forward_hook(lambda module, _args, _output: seen.append(type(module).__name__))
    adapter(torch.randn(3, 6))
    lora = ["Linear", "Linear", "Multiply", "LinearLora"]
    assert seen == ["Linear", *lora, *lora]


def test_a_convolution_is_adapted() -> None:
    conv, lora = fl.Conv2d(4, 6, 3, padding=1), Conv2dLora("foo", 4, 6, rank=2, scale=0.5)
    lora.load_weights(torch.randn(2, 4, 1, 1), torch.randn(6, 2, 3, 3))
    adapter = LoraAdapter(conv, lora)
    x = torch.randn(1, 4, 7, 9)
    update = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, lora.down.weight), lora.up.weight, padding=1)
    torch.testing.assert_close(adapter(x), conv(x) + 0.5 * update, rtol=1e-4, atol=1e-4)


def test_names_loras_and_scales(adapter: LoraAdapter) -> None:
    assert sorted(adapter.names) == ["bar", "foo"]
    assert adapter.loras.keys() == adapter.scales.keys() == {"foo", "bar"}
    assert adapter.scales == {"foo": 2.0, "bar": -1.0}
    assert [lora.name for lora in adapter.lora_layers] == ["foo", "bar"]
    assert all(adapter.loras[name].name == name for name in adapter.names)


def test_scales_are_set_by_name(adapter: LoraAdapter) -> None:
    x = torch.randn(3, 6)
    adapter.scale = {"foo": 0.0, "bar": 0.0}
    assert adapter.scale == adapter.scales == {"foo": 0.0, "bar": 0.0}
    torch.testing.assert_close(adapter(x), adapter.target(x))
    adapter.scale = {"foo": 3.0}
    assert adapter.scales == {"foo": 3.0, "bar": 0.0}
    torch.testing.assert_close(adapter(x), reference(adapter, x))


def test_the_scale_of_an_unknown_name_is_an_error(adapter: LoraAdapter) -> None:
    with pytest.raises(KeyError):
        adapter.scale = {"foo": 5.0, "unknown": 1.0}
    assert adapter.scales == {"foo": 2.0, "bar": -1.0}, "nothing is set"


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LinearLora("new", 6, 4), r"must be for Linear\(in_features=6, out_features=5, .*, got LinearLora of .*=4,"),
        (LinearLora("new", 5, 5), r"must be for Linear\(in_features=6, out_features=5, .*, got LinearLora of .*=5,"),
        (Conv2dLora("new", 6, 5), "must be for Linear.*, got Conv2dLora of Conv2d"),
        (
            WeightUpdate("new", LAYER, LowRankFactors(LAYER, torch.zeros(2, 6), torch.zeros(5, 2))),
            r"must be for Linear.*, got WeightUpdate of LowRankFactors\(down=\(2, 6\), up=\(5, 2\)\)",
        ),
    ],
    ids=["outputs", "inputs", "kind", "another layer"],
)
def test_an_update_of_another_shape_is_refused(adapter: LoraAdapter, lora: LayerUpdate, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.add_lora(lora)
    assert adapter.names == ["foo", "bar"] and lora.parent is None
    with pytest.raises(ValueError, match=message):
        LoraAdapter(adapter.target, make_lora("foo"), lora)
    assert adapter.target in adapter and lora.parent is None


def test_other_layers_with_weights_have_the_updates_that_they_are_given() -> None:
    embedding = fl.Embedding(6, 5)
    assert LoraAdapter(embedding, LinearLora("foo", 5, 5)).names == ["foo"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("x", TypeError, "the scale of 'bar' must be a number or a tensor, got str"),
        (None, TypeError, "the scale of 'bar' must be a number or a tensor, got NoneType"),
        (float("nan"), ValueError, "the scale of 'bar' must be finite, got nan"),
        (torch.tensor([float("inf"), 1.0]), ValueError, "the scale of 'bar' must be finite, got tensor"),
    ],
    ids=["text", "none", "not finite", "tensor"],
)
def test_a_wrong_scale_changes_nothing(adapter: LoraAdapter, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adapter.scale = {"foo": 5.0, "bar": value}
    lora = adapter.loras["bar"]
    with pytest.raises(error, match=message):
        lora.scale = value
    with pytest.raises(error, match=message):
        LinearLora("bar", 6, 5, scale=value)
    assert adapter.scales == {"foo": 2.0, "bar": -1.0} and lora.ensure_find(fl.Multiply).scale == -1.0


def test_the_scale_of_one_lora_takes_effect(adapter: LoraAdapter) -> None:
    x = torch.randn(3, 6)
    adapter(x)
    adapter.loras["foo"].scale = 7.0
    torch.testing.assert_close(adapter(x), reference(adapter, x))


def test_a_lora_is_added(adapter: LoraAdapter) -> None:
    lora = make_lora("baz")
    adapter.add_lora(lora)
    assert set(adapter.names) == {"foo", "bar", "baz"} and lora.parent is adapter
    assert adapter[-1] is lora
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapter(x), reference(adapter, x))


def test_a_name_is_added_once(adapter: LoraAdapter) -> None:
    with pytest.raises(AssertionError, match="LoRA layer with name foo already exists"):
        adapter.add_lora(make_lora("foo"))
    assert len(adapter) == 3


def test_a_lora_is_removed(adapter: LoraAdapter) -> None:
    lora = adapter.loras["foo"]
    assert adapter.remove_lora("foo") is lora
    assert lora.parent is None and adapter.names == ["bar"]
    assert adapter.remove_lora("unknown") is None and adapter.names == ["bar"]


def test_an_adapter_without_loras_stays_and_computes_its_target() -> None:
    chain = fl.Chain(fl.Linear(6, 5))
    adapter = LoraAdapter(chain.layer(0, fl.Linear), make_lora("foo")).inject(chain)
    adapter.remove_lora("foo")
    assert adapter.parent is chain and adapter.names == []
    x = torch.randn(3, 6)
    assert torch.equal(chain(x), adapter.target(x))


def test_loras_of_an_adapter_nested_around_the_target_are_included() -> None:
    linear = fl.Linear(6, 5)
    chain = fl.Chain(linear)
    outer, inner = LoraAdapter(linear, make_lora("outer")), LoraAdapter(linear, make_lora("inner"))
    outer.inject(chain)
    inner.inject(chain)
    assert set(outer.names) == {"outer", "inner"} and inner.names == ["inner"]
    outer.scale = {"inner": 4.0}
    assert inner.scales == {"inner": 4.0}
    assert isinstance(outer.remove_lora("inner"), Lora) and outer.names == ["outer"]


def test_ejecting_restores_the_layer_and_the_bits() -> None:
    chain = fl.Chain(fl.Linear(6, 5), fl.ReLU())
    linear, x = chain.layer(0, fl.Linear), torch.randn(3, 6)
    expected = chain(x)
    adapter = LoraAdapter(linear, make_lora("foo")).inject(chain)
    assert list(chain._modules) == ["LoraAdapter", "ReLU"] and not torch.equal(chain(x), expected)
    adapter.eject()
    assert chain[0] is linear and torch.equal(chain(x), expected)


def test_a_fresh_lora_changes_nothing() -> None:
    linear, x = fl.Linear(6, 5), torch.randn(3, 6)
    assert torch.equal(LoraAdapter(linear, LinearLora("foo", 6, 5))(x), linear(x))


def test_gradients_reach_the_loras_and_the_input(adapter: LoraAdapter) -> None:
    adapter.to(dtype=torch.float64).target.requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    adapter(x).square().sum().backward()
    expected = x.grad
    assert expected is not None
    grads: dict[str, Any] = {name: parameter.grad for name, parameter in adapter.named_parameters()}
    x.grad = None
    adapter.zero_grad()
    reference(adapter, x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    for name, parameter in adapter.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(grads[name], parameter.grad)


def test_duplicate_names_are_not_checked_at_construction() -> None:
    assert LoraAdapter(fl.Linear(6, 5), make_lora("foo"), make_lora("foo")).names == ["foo", "foo"]
