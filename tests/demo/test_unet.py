"""The model of the demo: what it takes and gives, what passes through contexts, and the weights that are shipped."""

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.demo.diffusion import predict_velocity
from refiners.demo.unet import NO_LABEL, WEIGHTS, DigitsUNet, load_base
from refiners.fluxion.layers.chain import ChainError
from refiners.fluxion.utils import load_from_safetensors


@pytest.fixture
def unet() -> DigitsUNet:
    return DigitsUNet(channels=16, inner_channels=24, embedding_dim=8, num_tokens=2)


def predict(unet: DigitsUNet, x: torch.Tensor, time: float = 0.5, label: int = 3) -> torch.Tensor:
    return predict_velocity(unet, x, torch.full((len(x),), time), torch.full((len(x),), label)).detach()


@pytest.mark.parametrize("batch", [1, 3])
def test_output_has_the_shape_of_the_input(unet: DigitsUNet, batch: int) -> None:
    assert predict(unet, torch.randn(batch, 1, 16, 16)).shape == (batch, 1, 16, 16)


def test_samples_of_a_batch_do_not_meet(unet: DigitsUNet) -> None:
    x = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(predict(unet, x)[2:3], predict(unet, x[2:3]))


def test_time_and_label_reach_the_output_through_contexts(unet: DigitsUNet) -> None:
    x = torch.randn(1, 1, 16, 16)
    outputs = [
        predict(unet, x),
        predict(unet, x, time=0.6),
        predict(unet, x, label=4),
        predict(unet, x, label=NO_LABEL),
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])
    with pytest.raises(ChainError, match=r"diffusion\.timestep is unset"):  # it is forgotten when the call ends
        unet(x)


def test_labels_enter_by_cross_attention_alone(unet: DigitsUNet) -> None:
    x = torch.randn(1, 1, 16, 16)
    for attention in unet.layers(fl.Attention):
        if type(attention) is fl.Attention:
            torch.nn.init.zeros_(attention.layer("Linear", fl.Linear).weight)
    assert torch.equal(predict(unet, x, label=1), predict(unet, x, label=2))


def test_residuals_pass_through_the_context_in_the_reverse_order(unet: DigitsUNet) -> None:
    shapes: list[tuple[int, ...]] = []
    for layer in unet.layers(fl.UseContext):
        if layer.key == "residuals":
            layer.compose(lambda residuals: shapes.append(tuple(residuals[-1].shape)) or residuals.pop())
    predict(unet, torch.randn(2, 1, 16, 16))
    assert shapes == [(2, 24, 4, 4), (2, 16, 8, 8)]
    assert unet.use_context("unet")["residuals"] == []


def test_residuals_matter(unet: DigitsUNet) -> None:
    x = torch.randn(1, 1, 16, 16)
    before = predict(unet, x)
    for layer in unet.layers(fl.UseContext):
        if layer.key == "residuals":
            layer.compose(lambda residuals: 2 * residuals.pop())
    assert not torch.allclose(predict(unet, x), before)


def test_the_shipped_weights_are_small_and_fit_strictly() -> None:
    assert WEIGHTS.stat().st_size <= 3_000_000
    unet, tensors = load_base(), load_from_safetensors(WEIGHTS)
    assert unet.state_dict().keys() == tensors.keys()
    assert all(torch.equal(weight, tensors[name]) for name, weight in unet.state_dict().items())


def test_building_on_meta_allocates_nothing() -> None:
    assert all(weight.is_meta for weight in DigitsUNet(device="meta").parameters())
