"""Calls of a diffusion model with mistakes: told by the name of the argument, before any work, or warned of."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.latent_diffusion import (
    DoubleTextEncoder,
    LatentDiffusionModel,
    SD1Autoencoder,
    SDXLAutoencoder,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.checks import check_tensor
from refiners.foundationals.latent_diffusion.solvers import DDIM, EulerAncestral


def text_encoder(dim: int) -> CLIPTextEncoder:
    return CLIPTextEncoder(embedding_dim=dim, num_layers=2, num_attention_heads=2, feedforward_dim=8)


@pytest.fixture
def sd1(make_small_sd1_unet: Callable[..., Any]) -> StableDiffusion_1:
    lda = SD1Autoencoder(channels=(8, 8, 8, 8), num_groups=4)
    return StableDiffusion_1(make_small_sd1_unet(), lda, text_encoder(24), DDIM(4)).requires_grad_(False)


@pytest.fixture
def xl(make_small_sdxl_unet: Callable[..., Any]) -> StableDiffusion_XL:
    unet = make_small_sdxl_unet(text_embedding_dim=28, pooled_text_embedding_dim=20)
    lda = SDXLAutoencoder(channels=(8, 8, 8, 8), num_groups=4)
    return StableDiffusion_XL(unet, lda, DoubleTextEncoder(text_encoder(8), text_encoder(20)), DDIM(4))


def refuse_work(model: LatentDiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("this is work")

    for part in (model.unet, model.clip_text_encoder, model.lda):
        monkeypatch.setattr(part, "forward", fail)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"text": None}, "text must be"),
        ({"negative_text": None}, "negative_text must be"),
        ({"size": 64}, "size must be"),
        ({"num_steps": 2.5}, "num_steps must be"),
        ({"num_steps": 10**6}, "num_inference_steps must be"),
        ({"condition_scale": "x"}, "condition_scale must be"),
        ({"seed": "x"}, "seed must be"),
        ({"init_image": "x"}, "init_image must be"),
        ({"strength": "x"}, "strength must be"),
        ({"on_step": 3}, "on_step must be"),
    ],
    ids=str,
)
def test_generate_checks_everything_before_any_work(
    arguments: dict[str, Any], error: str, sd1: StableDiffusion_1, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_work(sd1, monkeypatch)
    solver = sd1.solver
    with pytest.raises((TypeError, ValueError), match=error):
        sd1.generate(**({"text": "a cat", "size": (64, 64)} | arguments))
    assert sd1.solver is solver


def test_a_failure_leaves_the_solver(sd1: StableDiffusion_1, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_work(sd1, monkeypatch)
    solver = sd1.solver
    with pytest.raises(Exception, match="this is work"):
        sd1.generate("a cat", num_steps=9)
    assert sd1.solver is solver


def test_generate_takes_the_size_of_the_image(sd1: StableDiffusion_1) -> None:
    image = Image.effect_noise((75, 61), 50).convert("RGB")
    assert sd1.generate("a cat", init_image=image, num_steps=1)[0].size == (72, 64)
    assert sd1.generate("a cat", init_image=image, num_steps=1, size=(16, 24))[0].size == (24, 16)


@pytest.mark.parametrize(
    ("size", "options", "error", "message"),
    [
        (64, {}, TypeError, r"size must be two whole numbers \(height, width\), got 64"),
        ((64.0, 64), {}, TypeError, r"size must be .* got \(64.0, 64\)"),
        ((64,), {}, ValueError, r"size must be .* got \(64,\)"),
        ((64, 7), {}, ValueError, r"size must be at least \(8, 8\), got \(64, 7\)"),
        ((64, 64), {"init_image": "cat.png"}, TypeError, "init_image must be a PIL image .* got str"),
        ((64, 64), {"noise": [1]}, TypeError, r"noise must be a tensor, got \[1\]"),
        ((64, 64), {"noise": torch.zeros(4, 8, 8)}, AssertionError, r"noise shape .* got \(4, 8, 8\)"),
        ((64, 64), {"noise": torch.zeros(1, 3, 8, 8)}, AssertionError, r"expected \(batch, 4, 8, 8\)"),
    ],
)
def test_errors_of_the_first_latents(
    size: Any, options: dict[str, Any], error: type[Exception], message: str, sd1: StableDiffusion_1
) -> None:
    with pytest.raises(error, match=message):
        sd1.init_latents(size, **options)


def test_latents_of_any_size_are_rounded_down(sd1: StableDiffusion_1) -> None:
    assert sd1.init_latents((71, 80)).shape == (1, 4, 8, 10)


X, TEXT = torch.randn(1, 4, 8, 8), torch.randn(2, 77, 24)
MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a tensor, got None"),
    ({"x": X[0]}, ValueError, "x must be (batch, channels, height, width), got (4, 8, 8)"),
    ({"x": X[:, :3]}, ValueError, "x must be (batch, 4, height, width), got (1, 3, 8, 8)"),
    ({"x": X.half()}, TypeError, "x must be torch.float32 like the U-Net, got torch.float16"),
    ({"x": X.to("meta")}, ValueError, "x must be on cpu like the U-Net, got meta"),
    ({"clip_text_embedding": (TEXT, TEXT)}, TypeError, "clip_text_embedding must be a tensor, got tuple"),
    ({"clip_text_embedding": TEXT[0]}, ValueError, "clip_text_embedding must be (conditions, tokens, dim), got (77"),
    ({"clip_text_embedding": TEXT[..., :9]}, ValueError, "clip_text_embedding must be (batch, tokens, 24), got (2"),
    ({"clip_text_embedding": TEXT.double()}, TypeError, "clip_text_embedding must be torch.float32 like the U-Net"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator or a list of them, got 3"),
    ({"generator": [torch.Generator()] * 2}, ValueError, "generator must have one item for each of the 1 samples"),
]


@pytest.mark.parametrize(("changes", "error", "message"), MISTAKES, ids=[message[:50] for *_, message in MISTAKES])
def test_a_step_tells_the_argument_that_is_wrong(
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    sd1: StableDiffusion_1,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_work(sd1, monkeypatch)
    with pytest.raises(error, match=re.escape(message)) as caught:
        sd1(**({"x": X, "step": 0, "clip_text_embedding": TEXT} | changes))
    assert len(str(caught.value).splitlines()) == 1


def test_the_conditions_of_xl_are_checked_too(xl: StableDiffusion_XL, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = xl.compute_conditions("a cat", size=(64, 64))
    pooled, ids = conditions["pooled_text_embedding"], conditions["time_ids"]
    refuse_work(xl, monkeypatch)
    mistakes: list[tuple[str, Any, type[Exception], str]] = [
        ("pooled_text_embedding", pooled[:1], ValueError, "pooled_text_embedding must be (2, 20), got (1, 20)"),
        ("pooled_text_embedding", pooled[:, :3], ValueError, "pooled_text_embedding must be (2, 20), got (2, 3)"),
        ("pooled_text_embedding", pooled.double(), TypeError, "pooled_text_embedding must be torch.float32"),
        ("time_ids", ids[:, :5], ValueError, "time_ids must be (rows, 6), got (2, 5)"),
        ("time_ids", ids.repeat(2, 1)[:3], ValueError, "time_ids must have 2 rows, or 2 for all images alike, got 3"),
        ("time_ids", ids.tolist(), TypeError, "time_ids must be a tensor, got"),
        ("clip_text_embedding", (1, 2), TypeError, "clip_text_embedding must be a tensor, got (1, 2)"),
    ]
    for name, value, error, message in mistakes:
        with pytest.raises(error, match=re.escape(message)):
            xl(X, step=0, **(conditions | {name: value}))


def test_autocast_may_change_dtypes(sd1: StableDiffusion_1) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = sd1(X, step=0, clip_text_embedding=TEXT.bfloat16())
    assert y.isfinite().all()
    check_tensor("x", X.half(), (1, 4, 8, 8), X, any_dtype=True)


def test_solvers_that_draw_noise_take_a_generator_for_each_image(sd1: StableDiffusion_1) -> None:
    sd1.solver = EulerAncestral(4)
    x, text = torch.cat((X, X)), TEXT.repeat(2, 1, 1)
    assert sd1(x, step=0, clip_text_embedding=text, generator=[torch.Generator()] * 2).shape == x.shape


@pytest.mark.parametrize("part", ["unet", "lda"])
def test_images_that_are_no_numbers_are_warned_of(part: str, sd1: StableDiffusion_1) -> None:
    weight: Tensor = list(getattr(sd1, part).parameters())[-1]
    weight[0] = torch.nan
    expected = "the latents, and so the images, .* the U-Net" if part == "unet" else "the decoded images .* autoencoder"
    with pytest.warns(RuntimeWarning, match=expected) as caught:
        sd1.generate("a cat", size=(16, 16), num_steps=2)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_cut_prompt_is_warned_of(sd1: StableDiffusion_1) -> None:
    long = "cat " * 75 + "in a blue hat"
    with pytest.warns(UserWarning, match="75 tokens: these ends .*: 'in a blue hat'$") as caught:
        sd1.generate(["a dog", long], size=(16, 16), num_steps=1)
    assert len(caught) == 1 and caught[0].filename == __file__
