"""Updates in the weights of their layers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import (
    ChannelFactors,
    Conv2dLora,
    Decomposition,
    HadamardFactors,
    KroneckerFactors,
    LayerUpdate,
    LinearLora,
    LoraAdapter,
    LowRankFactors,
    MergedLoras,
    WeightUpdate,
)
from refiners.fluxion.adapters.lora.attach import MERGED, attach_loras
from refiners.fluxion.adapters.lora.places import find_places
from refiners.fluxion.adapters.lora.search import find_updates

Make = Callable[[str, fl.Linear | fl.Conv2d], LayerUpdate]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def tree() -> fl.Chain:
    return fl.Chain(
        fl.Conv2d(8, 16, kernel_size=3, padding=1),
        fl.SiLU(),
        fl.Residual(fl.Conv2d(16, 16, kernel_size=1)),
        fl.Flatten(start_dim=2),
        fl.Transpose(1, 2),
        fl.Residual(fl.Linear(16, 16), fl.Chain(fl.Linear(16, 16, bias=False))),
    )


def lora(name: str, layer: fl.Linear | fl.Conv2d) -> LayerUpdate:
    if isinstance(layer, fl.Linear):
        return LinearLora.from_weights(name, down=draw(2, 16), up=draw(16, 2))
    return Conv2dLora.from_weights(name, down=draw(2, *layer.weight.shape[1:]), up=draw(16, 2, 1, 1))


def weights(layer: fl.Linear | fl.Conv2d) -> LowRankFactors:
    return LowRankFactors(layer, draw(2, *layer.weight.shape[1:]), draw(16, 2))


def hadamard(layer: fl.Linear | fl.Conv2d) -> HadamardFactors:
    size = layer.weight[0].numel()
    return HadamardFactors(layer, draw(16, 2), draw(2, size), draw(16, 2), draw(2, size))


def kronecker(layer: fl.Linear | fl.Conv2d) -> KroneckerFactors:
    shape = layer.weight.shape
    return KroneckerFactors(layer, draw(4, 2), draw(4, shape[1] // 2, *shape[2:]))


def difference(layer: fl.Linear | fl.Conv2d) -> fl.Module:
    if isinstance(layer, fl.Linear):
        return fl.Linear(16, 16, bias=layer.bias is not None)
    return fl.Conv2d(layer.in_channels, 16, kernel_size=layer.weight.shape[-1], padding=layer.weight.shape[-1] // 2)


MAKERS: dict[str, Make] = {
    "LoRA": lora,
    "LoHa": lambda name, layer: WeightUpdate(name, layer, hadamard(layer)),
    "LoKr": lambda name, layer: WeightUpdate(name, layer, kronecker(layer)),
    "DoRA": lambda name, layer: WeightUpdate(name, layer, Decomposition(weights(layer), draw(16).abs())),
    "DoRA of columns": lambda name, layer: WeightUpdate(
        name, layer, Decomposition(weights(layer), draw(layer.weight.shape[1]).abs(), of_inputs=True)
    ),
    "IA3": lambda name, layer: WeightUpdate(name, layer, ChannelFactors(layer, draw(16), with_bias=True)),
    "IA3 of inputs": lambda name, layer: WeightUpdate(
        name, layer, ChannelFactors(layer, draw(layer.weight.shape[1]), of_inputs=True)
    ),
    "difference": lambda name, layer: WeightUpdate(name, layer, difference(layer)),
}


def layers_of(chain: fl.Chain) -> list[fl.Linear | fl.Conv2d]:
    return [layer for layer, _ in chain.walk(lambda module, _: isinstance(module, (fl.Linear, fl.Conv2d)))]


def attach(chain: fl.Chain, name: str, make: Make) -> None:
    for layer in layers_of(chain):
        if not isinstance(chain.ensure_find_parent(layer), LayerUpdate):
            parent = chain.ensure_find_parent(layer)
            if isinstance(parent, LoraAdapter):
                parent.add_lora(make(name, layer))
            else:
                LoraAdapter(layer, make(name, layer)).inject(parent)


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_the_layers_alone_compute_the_same(make: Make, scale: float) -> None:
    chain, x = tree(), draw(2, 8, 5, 4)
    before, plain, drawn = chain.state_dict(), chain(x), repr(chain)
    before = {key: value.clone() for key, value in before.items()}
    attach(chain, "style", make)
    for update in chain.layers(LayerUpdate, recurse=True):
        update.scale = scale
    adapted, merged = chain(x), MergedLoras(chain)
    merged.merge(["style"])
    assert repr(chain) == drawn and merged.names == ["style"]
    torch.testing.assert_close(chain(x), adapted, rtol=1e-4, atol=1e-5)
    merged.unmerge(["style"])
    torch.testing.assert_close(chain(x), adapted, rtol=0, atol=0)
    for adapter in list(chain.layers(LoraAdapter, recurse=True)):
        adapter.eject()
    assert torch.equal(chain(x), plain) and merged.names == []
    assert all(torch.equal(value, before[key]) for key, value in chain.state_dict().items())


def test_a_merged_weight_is_rounded_once() -> None:
    layer = fl.Linear(64, 32, dtype=torch.bfloat16)
    chain, exact = fl.Chain(layer), layer.weight.double()
    for name in "abc":
        down, up = (0.1 * torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 64), (32, 4)))
        exact = exact + up.double() @ down.double()
        lora = LinearLora.from_weights(name, down=down, up=up)
        parent = chain.ensure_find_parent(layer)
        parent.add_lora(lora) if isinstance(parent, LoraAdapter) else LoraAdapter(layer, lora).inject(chain)
    merged = MergedLoras(chain)
    for name in "abc":
        merged.merge([name])
    step = torch.finfo(torch.bfloat16).eps / 2 * exact.abs() * (1 + 1e-4)
    assert ((layer.weight.double() - exact).abs() <= step).all()


def test_any_sequence_ends_where_it_began() -> None:
    chain, x, dice = tree(), draw(2, 8, 5, 4), random.Random(0)
    plain, merged, names = chain(x), MergedLoras(chain), ["LoRA", "LoHa", "LoKr", "difference"]
    for name in names:
        attach(chain, name, MAKERS[name])
    every = chain(x)
    for _ in range(60):
        some = dice.sample(names, dice.randint(1, 4))
        if dice.random() < 0.5:
            merged.merge([name for name in some if name not in merged.names])
        else:
            merged.unmerge(some)
        torch.testing.assert_close(chain(x), every, rtol=1e-3, atol=1e-4)
    merged.unmerge(names)
    for adapter in list(chain.layers(LoraAdapter, recurse=True)):
        adapter.eject()
    assert torch.equal(chain(x), plain)


def test_a_new_multiplier_takes_effect_at_once() -> None:
    chain, x = tree(), draw(2, 8, 5, 4)
    plain, merged = chain(x), MergedLoras(chain)
    attach(chain, "style", lora)
    merged.merge(["style"])
    merged.set_scales({"style": 0.0})
    assert torch.equal(chain(x), plain) and {update.scale for update in merged.updates} == {0.0}


@pytest.mark.cuda
def test_pristine_weights_are_kept_where_asked() -> None:
    chain = tree().to("cuda")
    attach(chain, "style", lambda name, layer: lora(name, layer).to("cuda"))
    merged = MergedLoras(chain, keep_on="cpu")
    merged.merge(["style"])
    assert all(value.is_cpu for layer in merged._layers() for value in vars(layer)[MERGED].pristine.values())


def test_updates_of_the_weight_are_merged_with_the_others() -> None:
    chain = tree()
    for name in ("LoRA", "DoRA"):
        attach(chain, name, MAKERS[name])
    merged = MergedLoras(chain)
    with pytest.raises(ValueError, match="'DoRA' is made of the weight of .*: merge or unmerge it together"):
        merged.merge(["LoRA"])
    adapted = chain(x := draw(2, 8, 5, 4))
    merged.merge(["LoRA", "DoRA"])
    torch.testing.assert_close(chain(x), adapted, rtol=1e-4, atol=1e-5)


def wrong_scale(chain: fl.Chain) -> str:
    next(iter(chain.layers(LayerUpdate, recurse=True))).scale = torch.ones(2)
    return r"'style' has a multiplier for each sample, of shape \(2,\)"


def integers(chain: fl.Chain) -> str:
    layer = layers_of(chain)[0]
    layer._parameters["weight"] = nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)
    return "weight of .* is a Parameter of torch.int8, expected one of float16"


def eight_bits(chain: fl.Chain) -> str:
    layer = layers_of(chain)[0]
    layer._parameters["weight"] = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return "weight of .* is a Parameter of torch.float8_e4m3fn, expected one of float16"


def several_places(chain: fl.Chain) -> str:
    chain.append(fl.Chain(next(each for each in layers_of(chain) if type(each) is fl.Linear)))
    return r"the layer Linear\(.*\) is in several places of the model, which would change as well"


def tied_weights(chain: fl.Chain) -> str:
    one, other, *_ = [each for each in layers_of(chain) if isinstance(each, fl.Linear)]
    one.weight = other.weight
    return r"the layer Linear\(.*\) shares a weight with another one"


_copies: list[fl.Chain] = []


def structural_copies(chain: fl.Chain) -> str:
    _copies.append(chain.structural_copy())
    return r"the layer .* is also that of a structural copy, which would change as well"


def two_convolutions(chain: fl.Chain) -> str:
    adapter = list(chain.layers(LoraAdapter, recurse=True))[1]
    adapter.remove_lora("style")
    adapter.append(Conv2dLora.from_weights("style", down=draw(2, 16, 3, 3), up=draw(16, 2, 3, 3)))
    return "are not one like"


@pytest.mark.parametrize(
    "spoil", [wrong_scale, integers, eight_bits, several_places, tied_weights, structural_copies, two_convolutions]
)
def test_what_cannot_be_merged_changes_nothing(spoil: Callable[[fl.Chain], str]) -> None:
    chain = tree()
    attach(chain, "style", lora)
    message = spoil(chain)
    before, drawn = {key: value.clone() for key, value in chain.state_dict().items()}, repr(chain)
    merged = MergedLoras(chain)
    with pytest.raises(ValueError, match=message):
        merged.merge(["style"])
    assert merged.names == [] and repr(chain) == drawn
    assert all(torch.equal(value, before[key]) for key, value in chain.state_dict().items())


def test_an_update_of_the_weight_stays_with_the_others() -> None:
    chain = tree()
    for name in ("LoRA", "DoRA"):
        attach(chain, name, MAKERS[name])
    merged = MergedLoras(chain)
    merged.merge(["LoRA", "DoRA"])
    with pytest.raises(ValueError, match="'DoRA' is made of the weight of .*: merge or unmerge it together"):
        merged.unmerge(["DoRA"])
    assert merged.names == ["LoRA", "DoRA"]
    merged.unmerge(["LoRA"])
    layer = layers_of(chain)[0]
    with pytest.raises(ValueError, match="'late' is made of the weight of .*, in which others are merged"):
        attach_loras([(MAKERS["DoRA"]("late", layer), find_places(chain)["Conv2d"])])


def test_all_who_ask_see_what_is_merged() -> None:
    chain, x = tree(), draw(2, 8, 5, 4)
    plain = chain(x)
    attach(chain, "one", lora)
    attach(chain, "two", lora)
    MergedLoras(chain).merge(["one"])
    MergedLoras(chain).merge("two")
    copied = copy.deepcopy(chain)
    for each in (chain, copied):
        assert MergedLoras(each).names == ["one", "two"]
        MergedLoras(each).unmerge(["two", "one"])
        for adapter in list(each.layers(LoraAdapter, recurse=True)):
            adapter.eject()
        assert torch.equal(each(x), plain)


def test_a_cast_reaches_what_is_merged() -> None:
    chain, x = tree(), draw(2, 8, 5, 4).double()
    attach(chain, "style", lora)
    merged = MergedLoras(chain)
    merged.merge(["style"])
    chain.to(dtype=torch.float64)
    merged.unmerge(["style"])
    adapted = chain(x)
    merged.merge(["style"])
    torch.testing.assert_close(chain(x), adapted)


@pytest.mark.parametrize("action", ["merge", "unmerge", "scale"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1])
def test_a_failure_in_the_middle_changes_nothing(
    action: str, error: type[BaseException], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, x = tree(), draw(2, 8, 5, 4)
    for name in "ab":
        attach(chain, name, lora)
    merged, calls = MergedLoras(chain), count()
    merged.merge(["a"] if action == "merge" else ["a", "b"])
    before, names, drawn = chain(x), merged.names, repr(chain)
    make = LinearLora.differences

    def failing(self: LinearLora, parameters: Any) -> Any:
        if next(calls) == at:
            raise error
        return make(self, parameters)

    monkeypatch.setattr(LinearLora, "differences", failing)
    acts = {"merge": merged.merge, "unmerge": merged.unmerge, "scale": lambda _: merged.set_scales({"b": 3.0})}
    with pytest.raises(error):
        acts[action](["b"])
    assert merged.names == names and repr(chain) == drawn and torch.equal(chain(x), before)
    assert all(update.scale == 1 for update in merged.updates)


def test_what_was_a_structural_copy_hinders_nobody() -> None:
    chain = tree()
    attach(chain, "style", lora)
    x = torch.randn(1, 8, 4, 4)
    expected = chain(x)
    copied = chain.structural_copy()
    del copied
    MergedLoras(chain).merge(["style"])
    torch.testing.assert_close(chain(x), expected)


def test_a_structural_copy_is_merged_when_the_original_is_gone() -> None:
    chain = tree()
    attach(chain, "style", lora)
    x = torch.randn(1, 8, 4, 4)
    copied, expected = chain.structural_copy(), chain(x)
    with pytest.raises(ValueError, match="structural copy"):
        MergedLoras(copied).merge(["style"])
    del chain
    MergedLoras(copied).merge(["style"])
    torch.testing.assert_close(copied(x), expected)


class Without(fl.Chain, fl.Adapter[fl.Chain]):
    """Do without the target."""

    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Identity())


@pytest.mark.parametrize("is_merged", [True, False])
def test_updates_behind_an_adapter_that_does_without_them_are_known(is_merged: bool) -> None:
    chain = tree()
    attach(chain, "style", lora)
    merged = MergedLoras(chain)
    if is_merged:
        merged.merge(["style"])
    count = len(find_updates([chain]).merged if is_merged else find_updates([chain]).attached)
    adapter = Without(chain.layer("Residual_2", fl.Residual)).inject()
    found = find_updates([chain])
    assert count == len(found.merged if is_merged else found.attached) == 4
    adapter.eject()
