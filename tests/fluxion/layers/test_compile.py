"""Trees compile into one graph, and the compiled tree gives what the tree gives."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter, LinearLora, LoraAdapter


class Contexts(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"net": {"x": None, "residuals": []}}


class Doubling(fl.Sum, Adapter[fl.Linear]):
    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(target, fl.Chain(fl.UseContext("net", "x"), fl.Linear(4, 4)))


def with_set_and_use() -> fl.Chain:
    return Contexts(
        fl.SetContext("net", "x"),
        fl.Chain(fl.Linear(4, 4), fl.ReLU()),
        fl.Sum(fl.Identity(), fl.UseContext("net", "x")),
    )


def with_residual_list() -> fl.Chain:
    return Contexts(
        fl.SetContext("net", "residuals", callback=lambda residuals, x: residuals.append(x)),
        fl.Linear(4, 4),
        fl.SetContext("net", "residuals", callback=lambda residuals, x: residuals.append(x)),
        fl.Linear(4, 4),
        fl.Sum(fl.Identity(), fl.UseContext("net", "residuals").compose(lambda residuals: residuals.pop())),
        fl.Sum(fl.Identity(), fl.UseContext("net", "residuals").compose(lambda residuals: residuals.pop())),
    )


def with_lora() -> fl.Chain:
    chain = fl.Chain(fl.Linear(4, 4), fl.ReLU(), fl.Linear(4, 4))
    for linear, parent in list(chain.walk(fl.Linear)):
        lora = LinearLora("lora", 4, 4, rank=2)
        torch.nn.init.normal_(lora.up.weight)
        LoraAdapter(linear, lora).inject(parent)
    return chain


def with_self_attention() -> fl.Chain:
    return fl.Chain(fl.Residual(fl.LayerNorm(4), fl.SelfAttention(4, num_heads=2)), fl.Linear(4, 4))


def with_self_attention_2d() -> fl.Chain:
    return fl.Chain(fl.Unsqueeze(-1), fl.Lambda(lambda x: x.transpose(1, 2)), fl.SelfAttention2d(4))


def with_adapter() -> fl.Chain:
    net = Contexts(fl.SetContext("net", "x"), fl.Linear(4, 4))
    Doubling(net.layer("Linear", fl.Linear)).inject(net)
    return net


def with_branches() -> fl.Chain:
    return fl.Chain(
        fl.Parallel(fl.Identity(), fl.Linear(4, 4)),
        fl.Distribute(fl.Linear(4, 4), fl.SiLU()),
        fl.Passthrough(fl.Lambda(lambda x, y: x)),
        fl.Concatenate(fl.GetArg(0), fl.GetArg(1), dim=-1),
        fl.Residual(fl.Linear(8, 8)),
        fl.Matmul(fl.Identity(), fl.Lambda(lambda x: x.transpose(-1, -2))),
    )


MODELS = [
    with_set_and_use,
    with_residual_list,
    with_lora,
    with_self_attention,
    with_self_attention_2d,
    with_adapter,
    with_branches,
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("make", MODELS)
def test_a_tree_compiles_into_one_graph(make: Any) -> None:
    model, counter = make(), CompileCounter()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("make", [with_set_and_use, with_lora])
def test_a_compiled_tree_has_gradients(make: Any) -> None:
    model = make()
    x = torch.randn(2, 3, 4)
    model(x).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_contexts_set_from_outside_reach_a_compiled_tree() -> None:
    model, counter = fl.Chain(fl.Sum(fl.Identity(), fl.UseContext("given", "value"))), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.zeros(2)
    for number in (1.0, 2.0, 3.0):
        model.set_context("given", {"value": torch.full((2,), number)})
        assert compiled(x).tolist() == [number, number]
    assert counter.frame_count == 1


def test_contexts_are_reset_after_a_compiled_call() -> None:
    model = Contexts(fl.SetContext("net", "x"), fl.Linear(4, 4))
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(1, 4))
    assert model.use_context("net") == {"x": None, "residuals": []}


def test_an_edit_is_seen_by_a_compiled_tree() -> None:
    model = fl.Chain(fl.Lambda(lambda x: x + 1))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.zeros(1)
    assert compiled(x).item() == 1
    model.append(fl.Lambda(lambda x: x * 10))
    assert compiled(x).item() == 10


def test_a_context_value_may_be_any_tensor_expression() -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    model = Contexts(fl.SetContext("net", "x"), fl.UseContext("net", "x").compose(double))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)).item() == 2
