"""Conditions of both U-Nets come by contexts, are forgotten as said, and are asked for by name."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError

MakeUNet = Callable[..., Any]
Call = Callable[..., Tensor]
Conditions = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize("timestep", [[17, 17], [[17]], [[17], [17]], [17.0]], ids=str)
def test_timesteps_of_several_shapes_mean_the_same(make_unet: MakeUNet, call: Call, timestep: Any) -> None:
    unet, x = make_unet(), torch.randn(2, 4, 6, 6)
    expected = call(unet, x, timestep=torch.tensor([17]))
    assert_close(call(unet, x, timestep=torch.tensor(timestep)), expected, rtol=1e-5, atol=1e-6)


def test_each_sample_has_its_timestep(make_unet: MakeUNet, call: Call, conditions: Conditions) -> None:
    unet, x = make_unet(), torch.randn(2, 4, 6, 6)
    both = call(unet, x, timestep=torch.tensor([3, 900]))
    assert_close(both[:1], call(unet, x, timestep=torch.tensor([3]))[:1], rtol=1e-4, atol=1e-5)
    assert_close(both[1:], call(unet, x, timestep=torch.tensor([900]))[1:], rtol=1e-4, atol=1e-5)


def contexts_of(unet: fl.Chain) -> dict[str, Any]:
    names = ("unet", "diffusion", "range_adapter", "sampling")
    return copy.deepcopy({name: unet.use_context(name) for name in names})


@pytest.fixture(params=["returns", "raises"])
def ended(request: pytest.FixtureRequest) -> Callable[[Any, Call], None]:
    """Call a U-Net, in one of the ways that a call ends."""

    def end(unet: Any, call: Call) -> None:
        if request.param == "returns":
            call(unet, torch.randn(1, 4, 6, 6))
            return
        up = unet.layer("UpBlocks", fl.Chain).layer(1, fl.Chain)
        up.append(fl.Lambda(lambda _: 1 / 0))
        with pytest.raises(ChainError, match="ZeroDivisionError"):
            call(unet, torch.randn(1, 4, 6, 6))
        up.pop()

    return end


def test_a_call_leaves_nothing_but_the_text_embedding(
    make_unet: MakeUNet, call: Call, ended: Callable[[Any, Call], None]
) -> None:
    unet = make_unet()
    fresh = contexts_of(unet)
    blocks = 3 * len(unet.channels)
    assert fresh["unet"] == {"residuals": [0.0] * (blocks + 1)} and fresh["sampling"] == {"shapes": []}
    assert fresh["range_adapter"] == {"timestep_embedding": None}
    assert set(fresh["diffusion"].values()) == {None}
    ended(unet, call)
    assert contexts_of(unet) == fresh
    assert unet.use_context("cross_attention_block")["clip_text_embedding"] is not None
    for block in unet.layers(fl.Chain):
        assert block.use_context("unet")["residuals"] == fresh["unet"]["residuals"]


def test_each_condition_that_is_forgotten_is_asked_for(make_unet: MakeUNet, conditions: Conditions) -> None:
    unet = make_unet()
    given = conditions(unet, 1)
    for missing in given:
        unet = make_unet()
        for key, value in given.items():
            if key != missing:
                getattr(unet, f"set_{key}")(value)
        with pytest.raises(ChainError, match=rf"Call {type(unet).__name__}\.set_{missing} first"):
            unet(torch.randn(1, 4, 6, 6))


def test_the_timestep_is_asked_for_again(make_unet: MakeUNet, call: Call) -> None:
    unet, x = make_unet(), torch.randn(1, 4, 6, 6)
    call(unet, x)
    with pytest.raises(ChainError, match=r"diffusion\.timestep is unset.*set_timestep first"):
        unet(x)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("timestep", torch.zeros(()), r"timestep must be \(batch,\), got \(\)"),
        ("timestep", torch.zeros(2, 3), r"timestep must be \(batch,\), got \(2, 3\)"),
        ("clip_text_embedding", torch.zeros(2, 7, 25), r"must be \(batch, tokens, 24\), got \(2, 7, 25\)"),
        ("clip_text_embedding", torch.zeros(7, 24), r"must be \(batch, tokens, 24\), got \(7, 24\)"),
    ],
)
def test_a_setter_refuses_other_shapes_and_sets_nothing(
    make_unet: MakeUNet, key: str, value: Tensor, message: str
) -> None:
    unet = make_unet()
    with pytest.raises(ValueError, match=rf"set_{key}: .*{message}"):
        getattr(unet, f"set_{key}")(value)
    context = "cross_attention_block" if key == "clip_text_embedding" else "diffusion"
    assert (unet.provider.get_context(context) or {}).get(key) is None


def test_a_setter_refuses_other_types(make_unet: MakeUNet, conditions: Conditions) -> None:
    unet = make_unet()
    for key, value in conditions(unet, 1).items():
        setter = getattr(unet, f"set_{key}")
        with pytest.raises(TypeError, match=rf"set_{key}: {key} must be a tensor, got list"):
            setter(value.tolist())
        if value.is_floating_point():
            with pytest.raises(TypeError, match=rf"set_{key}: {key} must be floating point, got torch.int64"):
                setter(value.long())


@pytest.mark.parametrize(("batch", "given"), [(2, 3), (1, 2)])
def test_batches_that_disagree_are_named_with_their_setter(
    make_unet: MakeUNet, call: Call, conditions: Conditions, batch: int, given: int
) -> None:
    unet, x = make_unet(), torch.randn(batch, 4, 6, 6)
    for key, value in conditions(unet, given, timestep=torch.arange(given)).items():
        message = rf"the input is a batch of {batch}, but set_{key} got \({given}"
        with pytest.raises(ChainError, match=message) as caught:
            call(unet, x, **{key: value})
        assert re.findall(r"set_(\w+) got", str(caught.value)) == [key]


def test_other_failures_are_not_blamed_on_the_conditions(make_unet: MakeUNet, call: Call) -> None:
    unet = make_unet()
    unet.append(fl.Lambda(lambda _: 1 / 0))
    with pytest.raises(ChainError) as caught:
        call(unet, torch.randn(2, 4, 6, 6))
    assert re.findall(r"set_\w+ got", str(caught.value)) == []


def test_an_input_that_is_no_tensor_is_an_error_of_its_own(make_unet: MakeUNet, conditions: Conditions) -> None:
    unet = make_unet()
    for key, value in conditions(unet, 2).items():
        getattr(unet, f"set_{key}")(value)
    with pytest.raises(ChainError) as caught:
        unet("a cat")
    assert "hint" not in str(caught.value)
    assert re.findall(r"set_\w+ got", str(caught.value)) == []
