"""Attention against its formula in float64: functions, the head-splitting layer, and the three trees."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.attentions import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_non_optimized,
)

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def reference(query: Tensor, key: Tensor, value: Tensor, num_heads: int = 1, is_causal: bool = False) -> Tensor:
    """Attend head by head, with loops, in float64."""
    outputs: list[Tensor] = []
    for q, k, v in zip(*(x.double().chunk(num_heads, dim=-1) for x in (query, key, value))):
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if is_causal:
            later = torch.arange(k.shape[1]) > torch.arange(q.shape[1])[:, None]
            scores[:, later] = -math.inf
        outputs.append(scores.softmax(dim=-1) @ v)
    return torch.cat(outputs, dim=-1).to(query.dtype)


def inputs(dtype: torch.dtype = torch.float32, value_dim: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(2, 7, 12).to(dtype),
        torch.randn(2, 5, 12).to(dtype),
        torch.randn(2, 5, value_dim).to(dtype),
    )


def by_head(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.unflatten(-1, (3, -1)).transpose(1, 2) for x in tensors)


@pytest.mark.parametrize("function", [scaled_dot_product_attention, scaled_dot_product_attention_non_optimized])
def test_the_functions_are_the_formula(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    query, key, value = inputs(dtype, value_dim=6)
    actual = function(*by_head(query, key, value)).transpose(1, 2).flatten(2)
    assert actual.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert_close(actual, reference(query, key, value, num_heads=3), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("function", [scaled_dot_product_attention, scaled_dot_product_attention_non_optimized])
def test_a_mask_says_which_keys_are_seen(function: Callable[..., Tensor]) -> None:
    query, key, value = inputs()
    mask = torch.arange(5) < 3
    actual = function(*by_head(query, key, value), attn_mask=mask.expand(7, 5)).transpose(1, 2).flatten(2)
    assert_close(actual, reference(query, key[:, :3], value[:, :3], num_heads=3))


def test_the_fused_function_can_be_causal_and_the_other_says_that_it_cannot() -> None:
    tensors = inputs()
    actual = scaled_dot_product_attention(*by_head(*tensors), is_causal=True).transpose(1, 2).flatten(2)
    assert_close(actual, reference(*tensors, num_heads=3, is_causal=True))
    with pytest.raises(NotImplementedError, match="is_causal"):
        scaled_dot_product_attention_non_optimized(*by_head(*tensors), is_causal=True)


@pytest.mark.parametrize("slice_size", [None, 0, 1, 3, 7, 100])
@pytest.mark.parametrize("is_optimized", [True, False])
@pytest.mark.parametrize("value_dim", [12, 6])
def test_heads_and_slices_are_the_formula(
    slice_size: int | None, is_optimized: bool, value_dim: int, device: torch.device
) -> None:
    layer = fl.ScaledDotProductAttention(num_heads=3, is_optimized=is_optimized, slice_size=slice_size)
    tensors = inputs(value_dim=value_dim)
    assert_close(layer(*(x.to(device) for x in tensors)).cpu(), reference(*tensors, num_heads=3))


@pytest.mark.parametrize("slice_size", [None, 1, 2, 3, 7, 100])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(7, 7), (7, 3), (3, 7)])
def test_a_causal_slice_is_masked_from_where_it_starts(slice_size: int | None, num_queries: int, num_keys: int) -> None:
    query, key, value = torch.randn(2, num_queries, 12), torch.randn(2, num_keys, 12), torch.randn(2, num_keys, 6)
    layer = fl.ScaledDotProductAttention(num_heads=3, is_causal=True, slice_size=slice_size)
    assert_close(layer(query, key, value), reference(query, key, value, num_heads=3, is_causal=True))


@pytest.mark.parametrize("layer", [fl.ScaledDotProductAttention(2), fl.ScaledDotProductAttention(2, slice_size=2)])
def test_no_queries_give_no_rows(layer: fl.ScaledDotProductAttention) -> None:
    assert layer(torch.ones(1, 0, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 4)).shape == (1, 0, 4)


def test_slices_have_the_gradients_of_the_whole() -> None:
    tensors = [x.double().requires_grad_() for x in inputs()]
    expected = torch.autograd.grad(fl.ScaledDotProductAttention(3)(*tensors).square().sum(), tensors)
    actual = torch.autograd.grad(fl.ScaledDotProductAttention(3, slice_size=2)(*tensors).square().sum(), tensors)
    assert all(torch.allclose(a, e) for a, e in zip(actual, expected, strict=True))


def test_the_dot_product_can_be_replaced() -> None:
    layer = fl.ScaledDotProductAttention(num_heads=2)
    assert layer.dot_product is scaled_dot_product_attention
    assert fl.ScaledDotProductAttention(is_optimized=False).dot_product is scaled_dot_product_attention_non_optimized
    layer.dot_product = lambda query, key, value, is_causal=False: query + 1
    query = torch.randn(1, 3, 4)
    assert torch.equal(layer(query, query, query), query + 1)


def test_heads_are_consecutive_parts_of_the_last_dimension() -> None:
    layer, x = fl.ScaledDotProductAttention(num_heads=3), torch.arange(24.0).reshape(1, 2, 12)
    heads = layer._split_to_multi_head(x)
    assert heads.shape == (1, 3, 2, 4)
    assert torch.equal(heads[:, 1], x[..., 4:8])
    assert torch.equal(layer._merge_multi_head(heads), x)


def test_the_protected_steps_are_the_formula_and_can_be_overridden() -> None:
    class Counting(fl.ScaledDotProductAttention):
        calls = 0
        sliced_calls = 0

        def _process_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
            self.calls += 1
            return super()._process_attention(query, key, value)

        def _sliced_attention(self, query: Tensor, key: Tensor, value: Tensor, slice_size: int) -> Tensor:
            self.sliced_calls += slice_size
            return super()._sliced_attention(query, key, value, slice_size)

    tensors = inputs()
    expected = reference(*tensors, num_heads=3)
    layer = Counting(num_heads=3)
    assert_close(layer._process_attention(*tensors), expected)
    assert_close(layer._sliced_attention(*tensors, slice_size=3), expected)
    assert layer.calls == 4
    for slice_size, calls in ((None, 5), (3, 8)):
        layer.slice_size = slice_size
        assert_close(layer(*tensors), expected)
        assert layer.calls == calls
    assert layer.sliced_calls == 3 + 3


@pytest.mark.parametrize("shape", [(3, 4), (1, 1, 3, 4)])
def test_inputs_that_are_not_sequences_are_refused(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    message = r"Expected input tensor with shape \(batch_size sequence_length embedding_dim\), got "
    with pytest.raises(AssertionError, match=message):
        fl.ScaledDotProductAttention()(x, x, x)


def test_a_dimension_that_cannot_be_divided_among_the_heads_is_refused() -> None:
    x = torch.ones(1, 2, 4)
    with pytest.raises(AssertionError, match=r"divisible by num_heads 3, got \(1, 2, 4\)"):
        fl.ScaledDotProductAttention(num_heads=3)(x, x, x)


def test_attention_projects_attends_and_projects() -> None:
    layer = fl.Attention(8, 2, key_embedding_dim=5, value_embedding_dim=6, inner_dim=4, use_bias=False)
    assert list(layer.state_dict()) == [
        "Distribute.Linear_1.weight",
        "Distribute.Linear_2.weight",
        "Distribute.Linear_3.weight",
        "Linear.weight",
        "Linear.bias",
    ]
    assert list(layer._modules) == ["Distribute", "ScaledDotProductAttention", "Linear"]
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 4, 5), torch.randn(2, 4, 6)
    weights = layer.state_dict()
    projected = [x @ weights[f"Distribute.Linear_{i}.weight"].T for i, x in enumerate((query, key, value), start=1)]
    expected = reference(*projected, num_heads=2) @ weights["Linear.weight"].T + weights["Linear.bias"]
    assert_close(layer(query, key, value), expected)


def test_attention_keeps_what_it_was_built_with() -> None:
    layer = fl.Attention(8, 2, 5, 6, 4, False, True, False, "meta", torch.float16)
    names = ("embedding_dim", "num_heads", "heads_dim", "key_embedding_dim", "value_embedding_dim", "inner_dim")
    assert [getattr(layer, name) for name in names] == [8, 2, 4, 5, 6, 4]
    assert (layer.use_bias, layer.is_causal, layer.is_optimized) == (False, True, False)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}
    core = layer.ensure_find(fl.ScaledDotProductAttention)
    assert (core.num_heads, core.is_causal, core.is_optimized) == (2, True, False)
    default = fl.Attention(8)
    assert (default.key_embedding_dim, default.value_embedding_dim, default.inner_dim) == (8, 8, 8)
    assert "Distribute.Linear_1.bias" in default.state_dict()


def test_attention_draws_its_projections_in_order() -> None:
    torch.manual_seed(4)
    expected = [torch.nn.Linear(4, 4) for _ in range(4)]
    torch.manual_seed(4)
    actual = list(fl.Attention(4).layers(fl.Linear))
    assert all(torch.equal(a.weight, e.weight) for a, e in zip(actual, expected, strict=True))


def test_dimensions_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(AssertionError, match="embedding_dim 8 must be divisible by num_heads 3"):
        fl.Attention(8, 3)
    with pytest.raises(AssertionError, match="embedding_dim 8 must be divisible by num_heads 3"):
        fl.SelfAttention(8, num_heads=3)
    with pytest.raises(AssertionError, match="channels 8 must be divisible by num_heads 3"):
        fl.SelfAttention2d(8, 3)


@pytest.mark.parametrize("is_causal", [False, True])
def test_self_attention_attends_from_a_sequence_to_itself(is_causal: bool, in_one_graph: Compiled) -> None:
    layer = fl.SelfAttention(8, 12, 2, False, is_causal)
    assert (layer.embedding_dim, layer.inner_dim, layer.num_heads, layer.use_bias) == (8, 12, 2, False)
    assert list(layer._modules) == ["Parallel", "Distribute", "ScaledDotProductAttention", "Linear"]
    assert list(layer.state_dict()) == list(fl.Attention(8, use_bias=False).state_dict())
    x, weights = torch.randn(2, 5, 8), layer.state_dict()
    projected = [x @ weights[f"Distribute.Linear_{i}.weight"].T for i in (1, 2, 3)]
    attended = reference(*projected, num_heads=2, is_causal=is_causal)
    expected = attended @ weights["Linear.weight"].T + weights["Linear.bias"]
    assert_close(layer(x), expected)
    assert_close(in_one_graph(layer, x), expected)


def test_self_attention_2d_attends_from_pixel_to_pixel(in_one_graph: Compiled) -> None:
    layer = fl.SelfAttention2d(8, 2)
    assert (layer.channels, layer.embedding_dim, layer.num_heads) == (8, 8, 2)
    keys = ["Lambda_1", "Parallel", "Distribute", "ScaledDotProductAttention", "Linear", "Lambda_2"]
    assert list(layer._modules) == keys
    assert list(layer.state_dict()) == list(fl.Attention(8).state_dict())
    sequential = fl.SelfAttention(8, num_heads=2)
    sequential.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 3, 5)
    expected = sequential(x.reshape(2, 8, 15).mT).mT.reshape(2, 8, 3, 5)
    assert_close(layer(x), expected)
    assert_close(in_one_graph(layer, x), expected)


def test_self_attention_2d_declares_the_context_that_keeps_the_shape() -> None:
    layer = fl.SelfAttention2d(4)
    assert layer.init_context() == {"reshape": {"height": None, "width": None}}
    seen: list[dict[str, int]] = []
    layer.insert(3, fl.Lambda(lambda *x: (seen.append(dict(layer.use_context("reshape"))), x)[1]))
    layer(torch.randn(1, 4, 2, 3))
    assert seen == [{"height": 2, "width": 3}]
    assert layer.use_context("reshape") == {"height": None, "width": None}


def test_a_copy_of_self_attention_2d_does_not_write_to_the_original() -> None:
    layer = fl.SelfAttention2d(4)
    copy = layer.structural_copy()
    written: list[object] = []
    copy.insert(1, fl.Lambda(lambda x: (written.append(layer.use_context("reshape")["height"]), x)[1]))
    x = torch.randn(1, 4, 2, 3)
    assert_close(copy(x), layer(x))
    assert written == [None]


def test_attention_compiles_into_one_graph(in_one_graph: Compiled) -> None:
    layer = fl.Attention(8, 2, is_causal=True)
    layer.ensure_find(fl.ScaledDotProductAttention).slice_size = 2
    tensors = tuple(torch.randn(2, 5, 8) for _ in range(3))
    assert_close(in_one_graph(layer, *tensors), layer(*tensors))
