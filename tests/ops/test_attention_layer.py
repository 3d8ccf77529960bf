"""Where `fl.ScaledDotProductAttention` computes by the operator."""

import pytest
import torch
import torch.nn.functional as F

import refiners.fluxion.layers as fl
from refiners.fluxion.layers import attentions
from refiners.ops import attention, attention_choice
from refiners.ops.attention_choice import SMALLEST, choose_attention, is_faster_than_torch
from refiners.ops.library import native


@pytest.fixture
def with_avx2(monkeypatch):
    """The instruction set that was measured, and nothing too small for it."""
    monkeypatch.setattr(attention_choice, "SMALLEST", 0)
    before = native.isa, native.isa_reason
    if not native.use_isa("avx2"):
        pytest.skip("no AVX2")
    yield
    native.use_isa(before[0])
    native.isa_reason = before[1]


@pytest.fixture
def calls(monkeypatch):
    """The numbers of heads that the operator is called with by the layer."""
    seen = []

    def spy(query, key, value, num_heads, **more):
        seen.append(num_heads)
        return attention(query, key, value, num_heads, **more)

    monkeypatch.setattr(attentions, "attention", spy)
    return seen


def by_torch(query, key, value, heads, is_causal=False):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("isa", "dtype", "is_recorded", "chosen"),
    [
        ("avx2", torch.float32, False, True),
        ("avx2", torch.float32, True, False),
        ("avx2", torch.bfloat16, False, True),
        ("avx2", torch.bfloat16, True, True),
        ("avx2", torch.float16, True, True),
        ("avx512", torch.float32, False, False),
        ("amx", torch.bfloat16, False, False),
        ("portable", torch.float32, False, False),
    ],
)
def test_the_rule_is_what_was_measured(isa, dtype, is_recorded, chosen):
    found, reason = choose_attention(isa, dtype, is_recorded)
    assert found is chosen
    assert reason.startswith("the kernels: " if chosen else "torch's function: ")


def test_small_ones_are_left_to_torch(calls):
    if native.isa != "avx2" or not native.has_kernel("attention", torch.float32):
        pytest.skip("the kernels are not in use")
    assert choose_attention("avx2", torch.float32, False, SMALLEST) == (True, "the kernels: faster with AVX2")
    assert choose_attention("avx2", torch.float32, False, SMALLEST - 1)[0] is False
    layer, few = fl.ScaledDotProductAttention(1), [torch.randn(1, 64, 8) for _ in range(3)]
    many = [torch.randn(2, 256, 16) for _ in range(3)]
    layer(*few)
    assert calls == []
    layer(*many)
    assert calls == [1]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_layer_uses_the_operator_and_agrees_with_torch(dtype, is_causal, with_avx2, calls):
    layer = fl.ScaledDotProductAttention(3, is_causal=is_causal)
    inputs = [torch.randn(2, n, 24).to(dtype) for n in (20, 20, 20)]
    y = layer(*inputs)
    assert calls == [3]
    assert torch.equal(y, attention(*inputs, 3, is_causal=is_causal))
    expected = by_torch(*(x.double() for x in inputs), 3, is_causal)
    assert (y.double() - expected).norm() <= 2 * torch.finfo(dtype).eps * expected.norm()
    assert repr(layer) == repr(fl.ScaledDotProductAttention(3, is_causal=is_causal))


def test_training_in_float32_is_left_to_torch_and_in_16_bits_is_not(with_avx2, calls):
    layer, inputs = fl.ScaledDotProductAttention(3), [torch.randn(2, 20, 24) for _ in range(3)]
    leaf = inputs[0].clone().requires_grad_()
    y = layer(leaf, *inputs[1:])
    assert calls == []
    assert torch.equal(y, by_torch(leaf, *inputs[1:], 3))
    with torch.no_grad():
        layer(leaf, *inputs[1:])
    assert calls == [3]
    short = [x.bfloat16().requires_grad_() for x in inputs]
    layer(*short).float().sum().backward()
    assert calls == [3, 3]
    wide = [x.detach().double().requires_grad_() for x in short]
    by_torch(*wide, 3).sum().backward()
    for a, b in zip(short, wide):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("inputs", ["broadcast", "float64", "meta", "mixed"])
def test_what_the_operator_does_not_take_goes_to_torch(inputs, with_avx2):
    query, key, value = (torch.randn(2, 5, 12) for _ in range(3))
    if inputs == "broadcast":
        key, value = key[:1], value[:1]
    if inputs == "float64":
        query, key, value = query.double(), key.double(), value.double()
    if inputs == "meta":
        query, key, value = query.to("meta"), key.to("meta"), value.to("meta")
    if inputs == "mixed":
        value = value.double()
    assert not is_faster_than_torch(query, key, value)
    if inputs == "mixed":
        with pytest.raises(RuntimeError, match="dtype"):
            fl.ScaledDotProductAttention(3)(query, key, value)
    elif inputs != "meta":
        assert torch.equal(fl.ScaledDotProductAttention(3)(query, key, value), by_torch(query, key, value, 3))


def test_other_ways_to_attend_stay(with_avx2, calls):
    inputs = [torch.randn(2, 5, 12) for _ in range(3)]
    for layer in (fl.ScaledDotProductAttention(3, is_optimized=False), fl.ScaledDotProductAttention(3)):
        if layer.is_optimized:
            layer.dot_product = lambda query, key, value, is_causal=False: query
        layer(*inputs)
    assert calls == []
    sliced = fl.ScaledDotProductAttention(3, slice_size=2)(*inputs)
    assert calls == [3, 3, 3]
    torch.testing.assert_close(sliced, by_torch(*inputs, 3))


def test_the_switch_and_autocast_decide_too(with_avx2):
    inputs = [torch.randn(2, 5, 12) for _ in range(3)]
    assert is_faster_than_torch(*inputs)
    leaf = [x.clone().requires_grad_() for x in inputs]
    assert not is_faster_than_torch(*leaf)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_faster_than_torch(*leaf)
    native.use_kernels("attention", False)
    try:
        assert not is_faster_than_torch(*inputs)
    finally:
        native.use_kernels("attention", True)


def test_the_layer_is_one_graph(with_avx2, assert_one_graph):
    layer = fl.ScaledDotProductAttention(3)
    inputs = [[torch.randn(2, n, 12) for _ in range(3)] for n in (3, 7, 50)]
    assert_one_graph(lambda q, k, v: layer(q, k, v), inputs, "refiners.attention")


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of its fused attention
def test_transforms_see_through_the_layer(with_avx2):
    layer, inputs = fl.ScaledDotProductAttention(3), [torch.randn(4, 2, 5, 12) for _ in range(3)]
    mapped = torch.func.vmap(layer)(*inputs)
    torch.testing.assert_close(mapped, torch.stack([layer(*one) for one in zip(*inputs)]))
