"""The gradients of attention, and what else looks at it: the compiler, function transforms, autocast."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refiners.ops import attention, attention_backward
from refiners.ops.attention import _OPERATOR
from refiners.ops.library import native

NAMES = [argument.name for argument in _OPERATOR._schema.arguments]
ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def make_arguments(dtype: torch.dtype = torch.float64, batch: int = 2, queries: int = 5) -> dict[str, Any]:
    """All arguments in the order of the schema: 2 heads, 6 keys on a grid, 3 in the second set."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    return {
        "query": normal(batch, queries, 8),
        "key": normal(batch, 6, 8),
        "value": normal(batch, 6, 4),
        "num_heads": 2,
        "is_causal": False,
        "mask": normal(batch, 1, queries, 6),
        "bias": normal(2, 1, 6),
        "scale": 0.7,
        "row_bias": normal(batch, 2, queries, 2),
        "column_bias": normal(1, 2, 1, 3),
        "second_key": normal(batch, 3, 8),
        "second_value": normal(batch, 3, 4),
        "second_scale": torch.rand(batch).to(dtype),
        "second_mask": normal(queries, 3),
    }


def with_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        n: x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in arguments.items()
    }


def only(arguments: dict[str, Any], names: str) -> dict[str, Any]:
    return {n: x for n, x in arguments.items() if n in ("query", "key", "value", "num_heads", *names.split())}


def operator(**given: Any) -> Tensor:
    return _OPERATOR(*(given.get(name, False if name == "is_causal" else None) for name in NAMES))


SUBSETS = [
    "",
    "is_causal",
    "mask scale",
    "bias is_causal",
    "row_bias column_bias",
    "second_key second_value",
    "second_key second_value second_scale second_mask",
    " ".join(NAMES),
]


def variant(subset: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    arguments = make_arguments(dtype)
    arguments["is_causal"] = True
    return with_gradients(only(arguments, subset))


def check_gradients(arguments: dict[str, Any], again: bool = True) -> None:
    names = [name for name, x in arguments.items() if isinstance(x, Tensor) and x.requires_grad]

    def function(*tensors: Tensor) -> Tensor:
        return operator(**{**arguments, **dict(zip(names, tensors))})

    inputs = [arguments[name] for name in names]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=not again)
    assert not again or torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_gradients_are_right_twice(subset):
    check_gradients(variant(subset))


def test_some_queries_at_a_time_give_the_same_gradients(monkeypatch):
    monkeypatch.setattr(attention_backward, "_SCORES", 2 * 2 * 6 * 2)  # two queries
    check_gradients(variant(" ".join(NAMES)), again=False)


def test_gradients_exist_where_samples_share_a_mask_and_some_queries_see_nothing():
    arguments = make_arguments(batch=4)
    shared = with_gradients(only(arguments, ""))
    shared["mask"] = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    shared["bias"] = torch.zeros(5, 6, dtype=torch.float64)
    shared["bias"][3] = -math.inf
    check_gradients(shared, again=False)
    shared["mask"] = torch.rand(2, 1, 1, 6) > 0.5
    del shared["bias"]
    check_gradients(shared, again=False)


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_gradients_of_the_kernels_are_those_of_the_formula(subset, isa):
    exact = variant(subset)
    narrow = with_gradients({n: x.detach().float() if isinstance(x, Tensor) else x for n, x in exact.items()})
    y, expected = (attention(**given) for given in (narrow, exact))
    grad = torch.randn(expected.shape, dtype=torch.float64)
    names = [name for name, x in exact.items() if isinstance(x, Tensor)]
    found = torch.autograd.grad(y, [narrow[name] for name in names], grad.float())
    right = torch.autograd.grad(expected, [exact[name] for name in names], grad)
    for name, a, b in zip(names, found, right, strict=True):
        assert (a.dtype, a.shape) == (torch.float32, b.shape)
        torch.testing.assert_close(a, b.float(), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_16_bits_are_rounded_once(dtype, isa):
    tensors = [torch.randn(2, n, 128).to(dtype).requires_grad_() for n in (40, 60, 60)]
    wide = [x.detach().double().requires_grad_() for x in tensors]
    grad = torch.randn(2, 40, 128).to(dtype)
    found = torch.autograd.grad(_OPERATOR(*tensors, 2), tensors, grad)
    for a, b in zip(found, torch.autograd.grad(attention(*wide, 2), wide, grad.double()), strict=True):
        assert a.dtype == dtype
        assert (a - b.to(dtype)).count_nonzero() < 0.02 * a.numel()


def test_only_asked_gradients_are_computed(isa):
    arguments = only(make_arguments(torch.float32), "mask second_key second_value second_scale")
    arguments["second_scale"].requires_grad_()
    (grad,) = torch.autograd.grad(operator(**arguments).sum(), arguments["second_scale"])
    assert grad.shape == (2,)
    arguments["second_scale"].requires_grad_(False)
    assert not operator(**arguments).requires_grad


def check_operator(subset: str, gradients: bool, checks: tuple[str, ...]) -> None:
    arguments = make_arguments(torch.float32)
    arguments["is_causal"] = True
    given = only(arguments, subset)
    given = with_gradients(given) if gradients else given
    values = tuple(given.get(name, False if name == "is_causal" else None) for name in NAMES)
    torch.library.opcheck(_OPERATOR, values, test_utils=checks)


# All arguments are traced by one instruction set, as that takes seconds; the compiler sees no difference between them.
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("subset", "checks"), [("", ALL_CHECKS), (" ".join(NAMES), ALL_CHECKS[:-1])], ids=["", "all"])
def test_passes_opcheck(subset, checks, gradients, isa):
    check_operator(subset, gradients, checks)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True])
def test_all_arguments_together_are_traced(gradients):
    check_operator(" ".join(NAMES), gradients, ALL_CHECKS[-1:])


def test_one_graph_serves_several_shapes(isa, assert_one_graph):
    if not native.has_kernel("attention", torch.float32):
        pytest.skip("there torch's functions are in the graph")
    inputs = [[torch.randn(2, n, 12) for n in (queries, 2 * queries, 2 * queries)] for queries in (3, 7, 50)]
    assert_one_graph(lambda q, k, v: attention(q, k, v, 3, is_causal=True), inputs, "refiners.attention")


def test_one_graph_serves_several_shapes_with_gradients(isa):
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, 3), backend="aot_eager", fullgraph=True, dynamic=True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for queries in (3, 7, 50):
        inputs = [torch.randn(2, n, 12, requires_grad=True) for n in (queries, 2 * queries, 2 * queries)]
        found = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
        expected = torch.autograd.grad(attention(*inputs, 3).square().sum(), inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_autocast_reaches_the_kernels(isa):
    query, key, value = (torch.randn(2, 7, 12) for _ in range(3))
    bias, scale = torch.randn(7, 7), torch.rand(2)
    seconds = {"second_key": key, "second_value": value, "second_scale": scale}
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(query, key, value, 3, mask=bias, **seconds)
    short = query.bfloat16(), key.bfloat16(), value.bfloat16()
    expected = attention(
        *short, 3, mask=bias.bfloat16(), second_key=short[1], second_value=short[2], second_scale=scale
    )
    assert torch.equal(y, expected)


def test_gradients_are_not_computed_under_autocast(isa):
    inputs = [torch.randn(2, 7, 12, requires_grad=True) for _ in range(3)]
    y = _OPERATOR(*inputs, 3).sum()
    expected = torch.autograd.grad(y, inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_casts_the_gradients_back(isa):
    inputs = [torch.randn(2, 7, 12, requires_grad=True) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        attention(*inputs, 3).float().sum().backward()
    assert [x.grad.dtype for x in inputs] == [torch.float32] * 3


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of its fused attention
def test_transforms_see_through(isa):
    inputs = [torch.randn(4, 2, 7, 12) for _ in range(3)]
    mapped = torch.func.vmap(lambda q, k, v: attention(q, k, v, 3))(*inputs)
    torch.testing.assert_close(mapped, torch.stack([attention(*one, 3) for one in zip(*inputs)]))
    query, key, value = (x[0] for x in inputs)
    found = torch.func.grad(lambda q: attention(q, key, value, 3).square().sum())(query)
    leaf = query.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(attention(leaf, key, value, 3).square().sum(), leaf)[0])


class Doubled(Tensor):
    """A tensor with an attention of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [a.as_subclass(Tensor) if isinstance(a, Doubled) else a for a in args]
        y = func(*plain, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return 2 * y
        return y.as_subclass(Doubled) if isinstance(y, Tensor) else y


def test_another_class_of_tensor_keeps_its_own_attention(isa):
    inputs = [torch.randn(1, 3, 4) for _ in range(3)]
    y = attention(inputs[0].as_subclass(Doubled), *inputs[1:])
    torch.testing.assert_close(y.as_subclass(Tensor), 2 * attention(*inputs))


WRONG = {
    "num_heads must be at least 1, got 0": {"num_heads": 0},
    "num_heads must divide the 8 features of query, got 3": {"num_heads": 3},
    "query must be (batch, queries, features), got (5, 8)": {"query": torch.randn(5, 8)},
    "key must be (2, *, 8), got (2, 6, 4)": {"key": torch.randn(2, 6, 4)},
    "key must be (2, *, 8), got (1, 6, 8)": {"key": torch.randn(1, 6, 8)},
    "value must be (2, 6, *), got (2, 5, 4)": {"value": torch.randn(2, 5, 4)},
    "num_heads must divide the 3 features of value, got 2": {"value": torch.randn(2, 6, 3)},
    "mask must be broadcastable to (2, 2, 5, 6), got (5, 5)": {"mask": torch.randn(5, 5)},
    "mask must be broadcastable to (2, 2, 5, 6), got (3, 1, 5, 6)": {"mask": torch.randn(3, 1, 5, 6)},
    "mask must be broadcastable to (2, 2, 5, 6), got (0, 1, 5, 6)": {"mask": torch.randn(0, 1, 5, 6)},
    "bias must be broadcastable to (2, 2, 5, 6), got (1, 1, 1, 5, 6)": {"bias": torch.randn(1, 1, 1, 5, 6)},
    "column_bias needs the other of row_bias and column_bias": {"row_bias": None},
    "row_bias needs the other of row_bias and column_bias": {"column_bias": None},
    "row_bias must have 4 dimensions, got (5, 2)": {"row_bias": torch.randn(5, 2)},
    "row_bias must be broadcastable to (2, 2, 5, 2), got (2, 3, 5, 2)": {"row_bias": torch.randn(2, 3, 5, 2)},
    "row_bias and column_bias must be of 6 keys in all, got 3 * 3": {"row_bias": torch.randn(2, 2, 5, 3)},
    "second_value needs the other of second_key and second_value": {"second_key": None},
    "second_key needs the other of second_key and second_value": {"second_value": None},
    "second_scale needs second_key and second_value": {"second_key": None, "second_value": None},
    "second_mask needs second_key and second_value": {"second_key": None, "second_value": None, "second_scale": None},
    "second_key must be (2, *, 8), got (2, 3, 4)": {"second_key": torch.randn(2, 3, 4)},
    "second_value must be (2, 3, 4), got (2, 3, 8)": {"second_value": torch.randn(2, 3, 8)},
    "second_mask must be broadcastable to (2, 2, 5, 3), got (5, 6)": {"second_mask": torch.randn(5, 6)},
    "second_scale must be () or (2,), got (3,)": {"second_scale": torch.randn(3)},
    "key must be on cpu, got meta": {"key": torch.randn(2, 6, 8, device="meta")},
    "mask must be on cpu, got meta": {"mask": torch.randn(5, 6, device="meta")},
    "second_scale must be on cpu, got meta": {"second_scale": torch.randn(2, device="meta")},
}
WRONG_DTYPES = {
    "query must be floating, got torch.int64": {"query": torch.ones(2, 5, 8, dtype=torch.int64)},
    "value must be torch.float32, got torch.float64": {"value": torch.randn(2, 6, 4).double()},
    "mask must be torch.bool or torch.float32, got torch.float64": {"mask": torch.randn(5, 6).double()},
    "bias must be torch.float32, got torch.bool": {"bias": torch.ones(5, 6, dtype=torch.bool)},
    "second_scale must be floating, got torch.int64": {"second_scale": torch.ones(2, dtype=torch.int64)},
}


@pytest.mark.parametrize("message", [*WRONG, *WRONG_DTYPES])
def test_arguments_that_disagree_are_named(message, isa):
    wrong, error = (WRONG, ValueError) if message in WRONG else (WRONG_DTYPES, TypeError)
    with pytest.raises(error) as raised:
        attention(**{**make_arguments(torch.float32), **wrong[message]})
    assert str(raised.value) == f"attention: {message}"


@pytest.mark.parametrize("message", [name for name in WRONG if "meta" not in name])
def test_the_operator_itself_is_safe(message, isa):
    with pytest.raises((RuntimeError, NotImplementedError)):
        operator(**{**make_arguments(torch.float32), **WRONG[message]})
