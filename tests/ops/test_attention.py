import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refiners.ops import attention
from refiners.ops.library import native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# (batch, heads, queries, keys, features, value features): ordinary, then each edge alone.
CASES = [
    (2, 3, 40, 77, 40, 40),
    (1, 2, 70, 33, 64, 64),
    (1, 1, 9, 20, 80, 80),
    (1, 1, 9, 20, 88, 88),
    (1, 2, 30, 30, 128, 128),
    (1, 1, 25, 26, 160, 160),
    (1, 1, 14, 19, 512, 512),
    (1, 1, 1, 1, 1, 1),
    (1, 2, 5, 7, 3, 13),
    (1, 1, 13, 17, 33, 7),
    (1, 2, 100, 300, 17, 31),  # two blocks of queries and of keys
    (1, 17, 97, 513, 8, 8),  # three of keys, and one key more; many heads
    (300, 1, 3, 5, 4, 4),
    (2, 2, 0, 5, 4, 4),
    (2, 2, 5, 0, 4, 4),
    (0, 2, 5, 5, 4, 4),
    (2, 2, 5, 5, 0, 4),
    (2, 2, 5, 5, 4, 0),
]


def make_inputs(batch, heads, queries, keys, features, value_features, dtype=torch.float32):
    query, key = torch.randn(batch, queries, heads * features), torch.randn(batch, keys, heads * features)
    return [x.to(dtype) for x in (query, key, torch.randn(batch, keys, heads * value_features))]


def as_four(bias: Tensor, batch: int) -> Tensor:
    four = bias.reshape(*[1] * (4 - bias.dim()), *bias.shape)
    return torch.cat([four] * (1 if four.shape[0] == 1 else batch // four.shape[0]))


def attend(query, key, value, heads, is_causal, biases, scale):
    """One set of keys, plainly."""
    q, k, v = (x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.mT * (1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale)
    for bias in biases:
        if bias is not None:
            four = as_four(bias, query.shape[0])
            scores = scores.masked_fill(~four, -math.inf) if four.dtype == torch.bool else scores + four
    if is_causal:
        later = torch.arange(k.shape[2]) > torch.arange(q.shape[2])[:, None]
        scores = scores.masked_fill(later, -math.inf)
    weights = scores.softmax(-1).masked_fill((scores == -math.inf).all(-1, keepdim=True), 0)
    return (weights @ v).transpose(1, 2).reshape(query.shape[0], query.shape[1], value.shape[2])


def in_float64(x):
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def reference(query, key, value, heads, exact=True, **given):
    """The formula, in float64, or in the dtype of the inputs as a user of torch would write it."""
    if exact:
        query, key, value = (x.double() for x in (query, key, value))
        given = {name: in_float64(x) for name, x in given.items()}
    scale, grid = given.get("scale"), None
    if "row_bias" in given:
        row, column = given["row_bias"], given["column_bias"]
        grid = (row.unsqueeze(-1) + column.unsqueeze(-2)).flatten(-2)
    biases = [given.get("mask"), given.get("bias"), grid]
    y = attend(query, key, value, heads, given.get("is_causal", False), biases, scale)
    if "second_key" in given:
        second = given["second_key"], given["second_value"], heads, False, [given.get("second_mask")], scale
        factor = torch.as_tensor(given.get("second_scale", 1.0)).to(y.dtype)
        y = y + factor.reshape(-1, 1, 1) * attend(query, *second)
    return y


def by_torch(query, key, value, heads, **given):
    """The same by torch's fused function, with a bias for each pair."""
    merged = None
    for bias in [given.get("mask"), given.get("bias")]:
        if bias is not None:
            four = as_four(bias, query.shape[0])
            four = torch.zeros(()).to(query.dtype).where(four, -math.inf) if four.dtype == torch.bool else four
            merged = four if merged is None else merged + four
    if "row_bias" in given:
        grid = (given["row_bias"].unsqueeze(-1) + given["column_bias"].unsqueeze(-2)).flatten(-2)
        merged = grid if merged is None else merged + grid
    if merged is not None and given.get("is_causal"):
        seen = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril()
        merged = merged.masked_fill(~seen, -math.inf)
    q, k, v = (x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2) for x in (query, key, value))
    causal = given.get("is_causal", False) and merged is None
    y = F.scaled_dot_product_attention(q, k, v, merged, is_causal=causal, scale=given.get("scale"))
    if "second_key" in given:
        k, v = (given[name].unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("second_key", "second_value"))
        mask = given.get("second_mask")
        second = F.scaled_dot_product_attention(q, k, v, mask, scale=given.get("scale"))
        y = y + second * torch.as_tensor(given.get("second_scale", 1.0)).to(y.dtype).reshape(-1, 1, 1, 1)
    return y.transpose(1, 2).flatten(2)


def relative_error(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def assert_agrees(y, *inputs, **given):
    """The error is at most that of torch and a fifth; of a few elements, where luck decides, one or two roundings."""
    expected = reference(*inputs, **given)
    assert (y.dtype, y.shape) == (inputs[0].dtype, expected.shape)
    assert y.is_contiguous()
    if y.numel() == 0:
        return
    allowed = 1.2 * relative_error(by_torch(*inputs, **given), expected)
    few = torch.finfo(y.dtype).eps * (0.5 if y.dtype.itemsize == 2 else 1.0) if y.numel() < 1000 else 0.0
    if y.dtype == torch.float64:
        few = 1e-15  # the reference itself is no better
    assert relative_error(y, expected) <= max(allowed, few)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_formula_on_each_instruction_set(case, dtype, is_causal, isa):
    inputs = make_inputs(*case, dtype=dtype)
    assert_agrees(attention(*inputs, case[1], is_causal=is_causal), *inputs, case[1], is_causal=is_causal)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 2.5])
def test_any_scale_is_taken(scale, isa):
    inputs = make_inputs(2, 2, 20, 30, 16, 16)
    assert_agrees(attention(*inputs, 2, scale=scale), *inputs, 2, scale=scale)


# Shapes of a bias for a batch of 4, 3 heads, 20 queries and 300 keys.
BIASES = [
    (4, 3, 20, 300),
    (20, 300),
    (3, 20, 300),
    (300,),
    (),
    (1,),
    (4, 1, 1, 300),
    (1, 3, 20, 1),
    (2, 1, 20, 300),  # sample b has bias b % 2
    (2, 3, 1, 300),
]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", BIASES, ids=str)
def test_masks_and_biases_of_all_shapes_are_added(shape, dtype, is_causal, isa):
    inputs = make_inputs(4, 3, 20, 300, 16, 16, dtype)
    additive, other, seen = (2 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype), torch.rand(shape) > 0.3
    for given in ({"mask": additive}, {"mask": seen}, {"mask": seen, "bias": other}, {"mask": additive, "bias": other}):
        assert_agrees(attention(*inputs, 3, is_causal=is_causal, **given), *inputs, 3, is_causal=is_causal, **given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_windows_of_several_images_share_masks_and_a_bias(dtype, isa):
    windows, heads, tokens = 4, 3, 49
    fused = torch.randn(2 * windows, tokens, 3 * heads * 32).to(dtype)
    inputs = fused.chunk(3, dim=-1)
    mask = torch.where(torch.rand(windows, 1, tokens, tokens) > 0.3, 0.0, -100.0).to(dtype)
    bias = torch.randn(heads, tokens, tokens).to(dtype)
    assert_agrees(attention(*inputs, heads, mask=mask, bias=bias), *inputs, heads, mask=mask, bias=bias)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", [(14, 14), (64, 8), (1, 300), (300, 1), (3, 7), (2, 257)], ids=str)
def test_keys_on_a_grid_have_decomposed_positions(grid, dtype, is_causal, isa):
    rows, columns = grid
    inputs = make_inputs(2, 2, 30, rows * columns, 16, 16, dtype)
    given = {
        "row_bias": (2 * torch.randn(2, 2, 30, rows)).to(dtype),
        "column_bias": (2 * torch.randn(1, 2, 30, columns)).to(dtype),
        "is_causal": is_causal,
    }
    assert_agrees(attention(*inputs, 2, **given), *inputs, 2, **given)
    given |= {"bias": torch.randn(rows * columns).to(dtype), "mask": torch.rand(30, 1) > 0.1}
    assert_agrees(attention(*inputs, 2, **given), *inputs, 2, **given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("second_scale", [None, 0.6, torch.tensor(0.6), torch.tensor([0.3, 1.5]).bfloat16()])
@pytest.mark.parametrize("keys", [4, 16, 257])
def test_a_second_set_has_a_softmax_of_its_own(keys, second_scale, dtype, isa):
    inputs = make_inputs(2, 3, 50, 77, 40, 40, dtype)
    _, second_key, second_value = make_inputs(2, 3, 50, keys, 40, 40, dtype)
    given = {"second_key": second_key, "second_value": second_value, "is_causal": keys == 16}
    given |= {} if second_scale is None else {"second_scale": second_scale}
    assert_agrees(attention(*inputs, 3, **given), *inputs, 3, **given)
    given["second_mask"] = torch.rand(2, 1, 50, keys) > 0.4
    assert_agrees(attention(*inputs, 3, **given), *inputs, 3, **given)


def strided_copy(t: Tensor) -> Tensor:
    """The same values with every stride doubled and the dimensions laid out backwards."""
    backwards = torch.zeros([2 * size for size in reversed(t.shape)], dtype=t.dtype)
    view = backwards[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
    return view.copy_(t)


def full_arguments(dtype=torch.float32, batch=2, heads=2, queries=20, grid=(5, 6), second_keys=4, features=8):
    keys = grid[0] * grid[1]
    query, key, value = make_inputs(batch, heads, queries, keys, features, features, dtype)
    _, second_key, second_value = make_inputs(batch, heads, queries, second_keys, features, features, dtype)
    return {
        "query": query,
        "key": key,
        "value": value,
        "mask": torch.randn(batch, 1, queries, keys).to(dtype),
        "bias": torch.randn(heads, 1, keys).to(dtype),
        "row_bias": torch.randn(batch, heads, queries, grid[0]).to(dtype),
        "column_bias": torch.randn(1, heads, queries, grid[1]).to(dtype),
        "second_key": second_key,
        "second_value": second_value,
        "second_scale": torch.rand(batch).to(dtype),
        "second_mask": torch.randn(queries, second_keys).to(dtype),
    }


def call(function, arguments, heads=2, **more):
    query, key, value, *_ = arguments.values()
    rest = {name: x for name, x in arguments.items() if name not in ("query", "key", "value")}
    return function(query, key, value, heads, **rest, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", full_arguments())
def test_views_of_any_strides_are_taken(name, dtype, isa):
    arguments = full_arguments(dtype)
    expected = call(attention, arguments)
    arguments[name] = strided_copy(arguments[name])
    y = call(attention, arguments)
    torch.testing.assert_close(y, expected, rtol=0.02, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert isa == "portable" or torch.equal(y, expected)


def test_slices_of_one_projection_and_expanded_tensors_are_taken(isa):
    fused, context = torch.randn(2, 30, 3 * 64), torch.randn(1, 1, 64)
    query, key, value = fused.chunk(3, dim=-1)
    assert_agrees(attention(query, key, value, 2), query, key, value, 2)
    key, value = context.expand(2, 7, 64), context.expand(2, 7, 64)
    bias = torch.randn(2, 1, 30, 1).expand(2, 2, 30, 7)
    assert_agrees(attention(query, key, value, 2, mask=bias), query, key, value, 2, mask=bias)


def test_strides_beyond_32_bits_are_taken(isa):
    query, key, value = make_inputs(2, 1, 3, 2, 8, 8)
    far = torch.empty(1, dtype=torch.bfloat16).expand(2**33)  # views only: nothing is read behind the first element
    far = far.as_strided((1, 1, 8), (2**40, 2**36, 0))
    assert attention(far, far, far).shape == (1, 1, 8)
    assert_agrees(attention(query, key, value), query, key, value, 1)


@pytest.mark.parametrize("case", CASES[:2] + CASES[10:13], ids=str)
def test_is_bitwise_the_same_with_any_number_of_threads(case, isa, assert_same_bits):
    inputs = make_inputs(*case)
    assert_same_bits(lambda: attention(*inputs, case[1], is_causal=True))


def test_a_query_has_the_same_bits_in_any_company(isa):
    if not native.has_kernel("attention", torch.float32):
        pytest.skip("torch's functions choose their own blocks")
    query, key, value = make_inputs(1, 2, 200, 300, 40, 40)
    whole = attention(query, key, value, 2)
    assert torch.equal(attention(query[:, 3:8], key, value, 2), whole[:, 3:8])


@pytest.mark.parametrize("mask", ["bool", "additive", "grid"])
def test_a_query_that_sees_no_key_gives_zeros_as_in_torch(mask, isa):
    query, key, value = make_inputs(1, 2, 5, 300, 8, 8)
    seen = torch.ones(5, 300, dtype=torch.bool)
    seen[2], seen[3, :256], seen[4, 100:] = False, False, False
    given = {"mask": seen if mask == "bool" else torch.where(seen, 0.0, -math.inf)}
    if mask == "grid":
        zeros = torch.zeros(1, 1, 1, 1)
        given |= {"row_bias": zeros.expand(1, 1, 1, 20), "column_bias": zeros.expand(1, 1, 1, 15)}
    y = attention(query, key, value, 2, **given)
    assert torch.equal(y[:, 2], torch.zeros(1, 16))
    assert torch.equal(by_torch(query, key, value, 2, mask=seen)[:, 2], torch.zeros(1, 16))
    torch.testing.assert_close(y, reference(query, key, value, 2, mask=seen).float())


def test_a_second_set_without_visible_keys_adds_nothing(isa):
    arguments = full_arguments()
    first = {name: x for name, x in arguments.items() if not name.startswith("second")}
    arguments["second_mask"] = torch.zeros(4, dtype=torch.bool)
    torch.testing.assert_close(call(attention, arguments), call(attention, first))


@pytest.mark.parametrize("keys", [20, 300])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_comes_through_as_in_torch(bad, keys, isa):
    inputs = make_inputs(1, 1, 20, keys, 8, 8)
    for index in range(3):
        broken = [x.clone() for x in inputs]
        broken[index][0, 7, 3] = bad
        y, expected = attention(*broken), reference(*broken, 1).float()
        torch.testing.assert_close(y, expected, equal_nan=True)
        assert not y.isfinite().all() or (index == 1 and bad != bad) or index == 1
    bias = torch.zeros(20, keys)
    bias[4, 3] = bad
    torch.testing.assert_close(attention(*inputs, mask=bias), reference(*inputs, 1, mask=bias).float(), equal_nan=True)


def test_large_scores_do_not_overflow(isa):
    query, key, value = make_inputs(1, 1, 20, 300, 8, 8)
    y = attention(300 * query, 300 * key, value)
    torch.testing.assert_close(y, reference(300 * query, 300 * key, value, 1).float(), rtol=1e-3, atol=1e-3)
