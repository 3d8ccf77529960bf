"""The autoencoder in float16: no input gives NaN, and the result is right where float16 overflows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.auto_encoder import Decoder, Encoder, LatentDiffusionAutoencoder, Resnet
from refiners.foundationals.latent_diffusion.float16 import warn_of_no_numbers
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLAutoencoder


def make(**options: Any) -> LatentDiffusionAutoencoder:
    return SDXLAutoencoder(**({"channels": (8, 16, 16, 16), "num_groups": 4} | options))


def overheat(autoencoder: LatentDiffusionAutoencoder) -> None:
    """Let activations in the middle of both ways exceed float16, as those of the published SDXL decoder do."""
    for part in (Encoder, Decoder):
        resnet = autoencoder.ensure_find(part).ensure_find(Resnet)
        weight = resnet.layer(("Chain", "Conv2d_2"), fl.Conv2d).weight
        with torch.no_grad():
            weight.mul_(3e4 / weight.abs().max())  # which float16 still holds


@pytest.fixture(params=["cool", "hot"])
def autoencoder(request: pytest.FixtureRequest) -> LatentDiffusionAutoencoder:
    result = make()
    if request.param == "hot":
        overheat(result)
    return result


def fuzz_latents() -> dict[str, Tensor]:
    spike = torch.zeros(1, 4, 8, 8)
    spike[0, 1, 3, 5] = 6e4
    return {
        "normal": torch.randn(2, 4, 9, 7),
        "zero": torch.zeros(1, 4, 8, 8),
        "constant": torch.full((1, 4, 8, 8), 3.0),
        "large": 1e4 * torch.randn(1, 4, 8, 8).clamp(-3, 3),
        "largest": torch.full((1, 4, 8, 8), 65504.0),
        "spike": spike,
        "tiny": 1e-7 * torch.randn(1, 4, 8, 8),
    }


def fuzz_images() -> dict[str, Tensor]:
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    return {
        "uniform": 2 * torch.rand(2, 3, 72, 56) - 1,
        "black": -torch.ones(1, 3, 64, 64),
        "white": torch.ones(1, 3, 64, 64),
        "gray": torch.zeros(1, 3, 64, 64),
        "one color": torch.tensor([0.25, -1, 1]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64),
        "stripes": stripes,
        "out of range": 1e4 * torch.randn(1, 3, 64, 64).clamp(-3, 3),
    }


def test_no_input_gives_nan(autoencoder: LatentDiffusionAutoencoder, dtype: torch.dtype) -> None:
    autoencoder.to(dtype)
    with torch.no_grad():
        for name, z in fuzz_latents().items():
            y = autoencoder.decode(z.to(dtype))
            assert y.dtype == dtype and y.isfinite().all(), name
        for name, x in fuzz_images().items():
            y = autoencoder.encode(x.to(dtype))
            assert y.dtype == dtype and y.isfinite().all(), name


def test_float16_is_right_where_it_overflows(
    autoencoder: LatentDiffusionAutoencoder, error: Callable[..., float]
) -> None:
    x, z = 2 * torch.rand(1, 3, 64, 72) - 1, torch.randn(1, 4, 9, 7)
    with torch.no_grad():
        autoencoder.half().float()  # the weights themselves are rounded
        latents, images = autoencoder.encode(x.half().float()), autoencoder.decode(z.half().float())
        autoencoder.half()
        assert error(autoencoder.encode(x.half()).float(), latents) < 5e-3
        assert error(autoencoder.decode(z.half()).float(), images) < 5e-3


def test_large_images_are_right_in_float16() -> None:
    autoencoder = make(channels=(4, 4, 4, 8), num_groups=2)
    overheat(autoencoder)
    autoencoder.half().float()
    z = torch.randn(1, 4, 64, 65).half()
    with torch.no_grad():
        expected = np.asarray(autoencoder.latents_to_image(z.float())).astype(int)
        decoded = np.asarray(autoencoder.half().latents_to_image(z)).astype(int)
    assert abs(decoded - expected).max() <= 2 and expected.std() > 10


def test_the_tests_of_overflow_have_one() -> None:
    autoencoder = make()
    overheat(autoencoder)
    autoencoder.half()
    assert not autoencoder.layer("Decoder", Decoder)(torch.randn(1, 4, 8, 8).half()).isfinite().any()
    assert not autoencoder.layer("Encoder", Encoder)(torch.randn(1, 3, 64, 64).half()).isfinite().any()


def test_weights_are_not_touched_by_an_overflow() -> None:
    autoencoder = make()
    overheat(autoencoder)
    autoencoder.half()
    before = {name: (weight, weight.clone()) for name, weight in autoencoder.named_parameters()}
    seen: list[torch.dtype] = []

    def look(x: Tensor) -> Tensor:  # as another thread would, with a structural copy
        assert {weight.dtype for weight in autoencoder.parameters()} == {torch.float16}
        seen.append(x.dtype)
        return x

    autoencoder.layer("Decoder", Decoder).append(fl.Lambda(look))
    autoencoder.decode(torch.randn(1, 4, 8, 8).half())
    assert seen == [torch.float16, torch.float32]
    after = dict(autoencoder.named_parameters())
    assert all(after[name] is weight and torch.equal(weight, copy) for name, (weight, copy) in before.items())


def test_a_result_that_is_too_large_is_the_largest() -> None:
    autoencoder = make()
    output = autoencoder.layer("Decoder", Decoder).layer(("Chain_2", "Conv2d"), fl.Conv2d)
    with torch.no_grad():
        output.weight.mul_(1e4)
        output.bias.copy_(torch.tensor([6e4, -6e4, 0]))
        y = autoencoder.half().decode(torch.randn(1, 4, 8, 8).half())
    assert y.max() == 65504 and y.min() == -65504


def test_gradients_pass_an_overflow() -> None:
    autoencoder = make()
    overheat(autoencoder)
    autoencoder.half()
    autoencoder.decode(torch.randn(1, 4, 4, 4).half()).float().square().mean().backward()
    weight = autoencoder.layer("Decoder", Decoder).layer("Conv2d_1", fl.Conv2d).weight
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


NAN = torch.tensor([1.0, torch.nan])


@pytest.mark.parametrize(
    ("pixels", "latents", "message"),
    [
        (
            NAN,
            NAN,
            "^the latents, and so the images, hold .*: maybe the weights of the U-Net are damaged, or a LoRA has",
        ),
        (NAN.half(), NAN.half(), "maybe the U-Net has exceeded the range of float16 .try bfloat16 or float32., or the"),
        (NAN, torch.zeros(1), "^the decoded images hold .*: maybe the weights of the autoencoder are damaged$"),
        (NAN.half(), torch.zeros(1), "maybe the autoencoder has exceeded the range of float16"),
        (torch.tensor(-torch.inf), torch.zeros(1), "^the decoded images hold"),
    ],
)
def test_what_is_no_number_is_warned_of_with_its_likely_causes(pixels: Tensor, latents: Tensor, message: str) -> None:
    with pytest.warns(RuntimeWarning, match=message):
        warn_of_no_numbers(pixels, latents)


def test_numbers_are_not_warned_of_and_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Tensor] = []
    isfinite = Tensor.isfinite
    monkeypatch.setattr(Tensor, "isfinite", lambda x: looked.append(x) or isfinite(x))
    pixels = torch.ones(1, 3, 8, 8)
    warn_of_no_numbers(pixels, NAN)
    warn_of_no_numbers(pixels.to("meta"), NAN)
    assert len(looked) == 1 and looked[0] is pixels
