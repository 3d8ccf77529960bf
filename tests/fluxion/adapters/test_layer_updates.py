"""Updates of layers of every kind compute what the layer with the changed weight does, and leave it as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import (
    ChannelFactors,
    Decomposition,
    HadamardFactors,
    KroneckerFactors,
    LayerChange,
    LinearLora,
    LoraAdapter,
    LowRankFactors,
    WeightUpdate,
)

Layer = fl.Linear | fl.Conv2d
Case = tuple[LayerChange, Tensor]  # with the weight that the layer has by it


def linear() -> fl.Linear:
    return fl.Linear(12, 8, dtype=torch.float64)


def convolution() -> fl.Conv2d:
    return fl.Conv2d(12, 8, kernel_size=3, stride=2, padding=1, dtype=torch.float64)


LAYERS = {"linear": linear, "convolution": convolution}


def input_of(layer: Layer) -> Tensor:
    return torch.randn((3, 5, 12) if isinstance(layer, fl.Linear) else (3, 12, 9, 8), dtype=torch.float64)


def output_of(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = layer.bias if bias is None else bias
    if isinstance(layer, fl.Linear):
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def hadamard(layer: Layer, rank: int = 1) -> Case:
    size = layer.weight[0].numel()
    a, b, c, d = draw(8, rank), draw(rank, size), draw(8, rank), draw(rank, size)
    return HadamardFactors(layer, a, b, c, d), layer.weight + ((a @ b) * (c @ d)).view(layer.weight.shape)


def large_hadamard(layer: Layer) -> Case:
    return hadamard(layer, rank=6)


def kronecker(layer: Layer) -> Case:
    small, large = draw(2, 4), draw(4, 3, *layer.weight.shape[2:])
    whole = torch.stack([torch.cat([large * factor for factor in row], dim=1) for row in small]).flatten(0, 1)
    return KroneckerFactors(layer, small, large), layer.weight + whole


def kronecker_of_factors(layer: Layer) -> Case:
    a, b, c, d = draw(2, 3), draw(3, 4), draw(4, 2), draw(2, 3 * layer.weight.shape[2:].numel())
    small, large = a @ b, (c @ d).view(4, 3, *layer.weight.shape[2:])
    whole = torch.stack([torch.cat([large * factor for factor in row], dim=1) for row in small]).flatten(0, 1)
    return KroneckerFactors(layer, w1_a=a, w1_b=b, w2_a=c, w2_b=d), layer.weight + whole


def low_rank(layer: Layer) -> tuple[LowRankFactors, Tensor]:
    down, up = draw(2, *layer.weight.shape[1:]), draw(8, 2)
    return LowRankFactors(layer, down, up), layer.weight + torch.einsum("or,r...->o...", up, down)


def normalized(weight: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    dims = [dim for dim in range(weight.ndim) if dim != axis]
    lengths = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return weight / lengths * magnitude.view(lengths.shape)


def rows(layer: Layer) -> Case:
    (factors, weight), magnitude = low_rank(layer), draw(8).abs()
    return Decomposition(factors, magnitude), normalized(weight, magnitude, axis=0)


def columns(layer: Layer) -> Case:
    (factors, weight), magnitude = low_rank(layer), draw(12).abs()
    return Decomposition(factors, magnitude, of_inputs=True), normalized(weight, magnitude, axis=1)


def rows_of_product(layer: Layer) -> Case:
    (factors, weight), magnitude = kronecker(layer), draw(8).abs()
    assert isinstance(factors, KroneckerFactors)
    return Decomposition(factors, magnitude), normalized(weight, magnitude, axis=0)


def outputs_rescaled(layer: Layer) -> Case:
    factors = draw(8)
    return ChannelFactors(layer, factors), layer.weight * (1 + factors.view(-1, *[1] * (layer.weight.ndim - 1)))


def inputs_rescaled(layer: Layer) -> Case:
    factors = draw(12)
    change = ChannelFactors(layer, factors, of_inputs=True)
    return change, layer.weight * (1 + factors.view(-1, *[1] * (layer.weight.ndim - 2)))


CASES = [
    hadamard,
    large_hadamard,
    kronecker,
    kronecker_of_factors,
    low_rank,
    rows,
    columns,
    rows_of_product,
    outputs_rescaled,
    inputs_rescaled,
]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Layer:
    return LAYERS[request.param]()


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def case(request: pytest.FixtureRequest, layer: Layer) -> Case:
    return request.param(layer)


def test_the_layer_has_the_changed_weight(layer: Layer, case: Case) -> None:
    change, weight = case
    chain, x = fl.Chain(layer), input_of(layer)
    before, adapter = layer(x), LoraAdapter(layer, WeightUpdate("style", layer, change)).inject(chain)
    torch.testing.assert_close(chain(x), output_of(layer, x, weight))
    with torch.no_grad():
        torch.testing.assert_close(chain(x), output_of(layer, x, weight))
    adapter.eject()
    assert torch.equal(chain(x), before) and chain[0] is layer


def test_the_scale_goes_from_the_layer_to_the_changed_one(layer: Layer, case: Case) -> None:
    change, weight = case
    update, x = WeightUpdate("style", layer, change), input_of(layer)
    chain = fl.Chain(LoraAdapter(layer, update))
    update.scale = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    scale = update.scale.view(-1, *[1] * (x.ndim - 1))
    torch.testing.assert_close(chain(x), torch.lerp(layer(x), output_of(layer, x, weight), scale))


def test_updates_of_several_kinds_add_up(layer: Layer, case: Case) -> None:
    (change, weight), (other, other_weight) = case, rows(layer)
    chain, x = (
        fl.Chain(LoraAdapter(layer, WeightUpdate("one", layer, change), WeightUpdate("two", layer, other))),
        input_of(layer),
    )
    torch.testing.assert_close(chain(x), output_of(layer, x, weight + other_weight - layer.weight))


def test_a_hook_is_called(layer: Layer, case: Case) -> None:
    change, weight = case
    update, x, seen = WeightUpdate("style", layer, change), input_of(layer), list[str]()
    chain = fl.Chain(LoraAdapter(layer, update))
    for module in (layer, update, change):
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    torch.testing.assert_close(chain(x), output_of(layer, x, weight))
    assert seen == [type(layer).__name__, type(change).__name__, "WeightUpdate"]


def test_gradients_are_those_of_the_formula(layer: Layer, case: Case) -> None:
    change, _ = case
    # Lengths are constants in the backward pass: the gradients of what they are made of are others.
    trained = [change.magnitude] if isinstance(change, Decomposition) else list(change.parameters())
    layer.requires_grad_(False)
    chain, x = fl.Chain(LoraAdapter(layer, WeightUpdate("style", layer, change))), input_of(layer).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: chain(x), (x, *trained), fast_mode=True)


def test_a_copy_has_a_scale_of_its_own(layer: Layer, case: Case) -> None:
    update, x = WeightUpdate("style", layer, case[0]), input_of(layer)
    chain = fl.Chain(LoraAdapter(layer, update))
    expected, copies = chain(x), (chain.structural_copy(), copy.deepcopy(chain))
    update.scale = 0.5
    for other in copies:
        assert torch.equal(other(x), expected)


def test_the_lengths_follow_a_change_in_place(layer: Layer) -> None:
    change, _ = rows(layer)
    assert isinstance(change, Decomposition) and isinstance(change.factors, LowRankFactors)
    chain, x = fl.Chain(LoraAdapter(layer, WeightUpdate("style", layer, change))), input_of(layer)
    with torch.no_grad():
        chain(x)
        assert change.ratio() is change.ratio()
        change.factors.up.mul_(2)
        weight = layer.weight + change.factors.difference()
        torch.testing.assert_close(chain(x), output_of(layer, x, normalized(weight, change.magnitude, axis=0)))


def test_a_scale_of_zero_is_the_layer(layer: Layer, case: Case) -> None:
    chain, x = fl.Chain(LoraAdapter(layer, WeightUpdate("style", layer, case[0], scale=0.0))), input_of(layer)
    torch.testing.assert_close(chain(x), layer(x))


def test_one_graph(layer: Layer, case: Case) -> None:
    chain, x = fl.Chain(LoraAdapter(layer, WeightUpdate("style", layer, case[0]))), input_of(layer)
    torch.compiler.reset()  # what other cases have compiled counts against a limit
    torch.testing.assert_close(torch.compile(chain, backend="eager", fullgraph=True)(x), chain(x))


def multiplied(layer: Layer) -> Case:
    factors = draw(8)
    each = factors.view(-1, *[1] * (layer.weight.ndim - 1))
    return ChannelFactors(layer, factors, with_bias=True), layer.weight * (1 + each)


@torch.no_grad()
@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("make", [*CASES, multiplied])
def test_autocast_gives_the_dtype_of_the_layer(layer: Layer, make: Callable[[Layer], Case], is_watched: bool) -> None:
    change, _ = make(layer)
    chain, x = fl.Chain(LoraAdapter(layer, WeightUpdate("style", layer, change))).float(), input_of(layer).float()
    expected = chain(x)
    if is_watched:  # then the children are called
        layer.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16):
        result = chain(x)
        assert result.dtype == layer(x).dtype == torch.bfloat16
    assert (result - expected).norm() <= 0.02 * expected.norm()


def test_an_update_belongs_to_its_layer(layer: Layer, case: Case) -> None:
    update = WeightUpdate("style", layer, case[0])
    assert update.is_compatible(layer) and not update.is_compatible(copy.deepcopy(layer))


@pytest.mark.parametrize("make", [lambda: fl.LayerNorm(12), lambda: fl.GroupNorm(channels=12, num_groups=3)])
def test_the_difference_of_a_norm_is_a_norm(make: Callable[[], fl.LayerNorm | fl.GroupNorm]) -> None:
    layer, change = make(), make()
    nn.init.normal_(change.weight)
    nn.init.normal_(change.bias)
    x = torch.randn(2, 12, 4, 12)
    changed = copy.deepcopy(layer)
    changed.weight.data += change.weight.data / 2
    changed.bias.data += change.bias.data / 2
    chain = fl.Chain(LoraAdapter(layer, WeightUpdate("style", layer, change, scale=0.5)))
    torch.testing.assert_close(chain(x), changed(x))


def test_a_lora_beside_them_is_added() -> None:
    layer = linear()
    change, weight = rows(layer)
    lora = LinearLora.from_weights("lora", down=draw(2, 12), up=draw(8, 2))
    chain, x = fl.Chain(LoraAdapter(layer, lora, WeightUpdate("style", layer, change))), input_of(layer)
    torch.testing.assert_close(chain(x), output_of(layer, x, weight + lora.up.weight @ lora.down.weight))
