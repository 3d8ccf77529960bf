"""What the diffusion models have in common: batches, seeds, guidance, copies, moves, and their errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.latent_diffusion import (
    DoubleTextEncoder,
    LatentDiffusionModel,
    SD1Autoencoder,
    SD1UNet,
    SDXLAutoencoder,
    SDXLUNet,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler, EulerAncestral, SolverParams

SIZE = (64, 72)  # pixels


def text_encoder(dim: int) -> CLIPTextEncoder:
    return CLIPTextEncoder(embedding_dim=dim, num_layers=2, num_attention_heads=4, feedforward_dim=64)


def make_sd1() -> StableDiffusion_1:
    return StableDiffusion_1(
        unet=SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=32),
        lda=SD1Autoencoder(channels=(32, 32, 64, 64)),
        clip_text_encoder=text_encoder(32),
    )


def make_xl() -> StableDiffusion_XL:
    unet = SDXLUNet(
        4,
        channels=(32, 64, 64),
        text_embedding_dim=96,
        pooled_text_embedding_dim=64,
        num_attention_layers=(0, 1, 2),
        head_dim=32,
        time_ids_embedding_dim=8,
    )
    return StableDiffusion_XL(
        unet=unet,
        lda=SDXLAutoencoder(channels=(32, 32, 64, 64)),
        clip_text_encoder=DoubleTextEncoder(text_encoder(32), text_encoder(64)),
    )


@pytest.fixture(params=[make_sd1, make_xl], ids=["sd1", "xl"])
def model(request: pytest.FixtureRequest) -> Iterator[LatentDiffusionModel]:
    with torch.no_grad():
        yield request.param()


def sample(model: LatentDiffusionModel, seeds: list[int], prompts: list[str], **options: object) -> Tensor:
    """Take all steps, by the methods that a program calls."""
    conditions = model.compute_conditions(prompts, size=SIZE)
    generators = [Generator().manual_seed(seed) for seed in seeds]
    x = model.init_latents(SIZE, generator=generators)
    for step in model.steps:
        x = model(x, step=step, generator=generators, **conditions, **options)
    return x


@pytest.mark.parametrize("solver", [DDIM, DPMSolver, Euler, EulerAncestral])
def test_an_image_does_not_depend_on_the_others_of_its_batch(model: LatentDiffusionModel, solver: type) -> None:
    model.solver = solver(4)
    together = sample(model, [3, 4, 5], ["a cat", "two dogs", ""])
    alone = torch.cat([sample(model, [seed], [text]) for seed, text in ((3, "a cat"), (4, "two dogs"), (5, ""))])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=2e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_steps_of_a_loop_give_what_they_give_alone(model: LatentDiffusionModel) -> None:
    """What is kept from step to step changes nothing."""
    model.set_inference_steps(4)
    kept = sample(model, [1, 2], ["a cat", "a dog"])
    again = sample(model, [1, 2], ["a cat", "a dog"])
    other = sample(model, [1, 2], ["a bird", "a dog"])
    with torch.enable_grad():
        fresh = sample(model, [1, 2], ["a cat", "a dog"]).detach()
        fresh_other = sample(model, [1, 2], ["a bird", "a dog"]).detach()
    torch.testing.assert_close(kept, fresh, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(again, fresh, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(other, fresh_other, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(kept, other, atol=1e-2)


def test_what_does_not_change_is_computed_once(model: LatentDiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    forward = fl.Linear.forward

    def counted(self: fl.Linear, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(self, x)

    model.set_inference_steps(5)
    conditions = model.compute_conditions("a cat", size=SIZE)
    x = model.init_latents(SIZE)
    monkeypatch.setattr(fl.Linear, "forward", counted)
    counts: list[int] = []
    for step in model.steps:
        calls = 0
        model(x, step=step, **conditions)
        counts.append(calls)
    blocks = list(model.unet.layers(fl.Attention))
    projections = 2 * sum(type(block) is fl.Attention for block in blocks)
    shifts = sum(1 for _ in model.unet.layers(RangeAdapter2d))
    is_xl = isinstance(model, StableDiffusion_XL)
    encoders = 4 if is_xl else 2  # two linear layers in that of the timestep, and in that of the text and the sizes
    saved = [projections + encoders + shifts] * 4
    if is_xl:
        saved[0] -= shifts  # computed for all steps, as soon as the text is known to stay
    assert projections > 0
    assert [counts[0] - count for count in counts[1:]] == saved


@pytest.mark.parametrize("guided", [True, False])
def test_guidance(model: LatentDiffusionModel, guided: bool) -> None:
    model.classifier_free_guidance = guided
    model.solver = DDIM(4)
    conditions = model.compute_conditions("a cat", "bad", size=SIZE)
    x = model.init_latents(SIZE, generator=Generator().manual_seed(0))
    result = model(x, step=1, condition_scale=3.0, **conditions)
    predictions = []
    for i in range(1 + guided):
        part = {name: value[i : i + 1] for name, value in conditions.items()}
        model.set_unet_context(timestep=model.solver.timesteps[1].unsqueeze(0), **part)
        predictions.append(model.unet(x))
    prediction = predictions[0] + 3 * (predictions[-1] - predictions[0])
    torch.testing.assert_close(result, model.solver(x, prediction, 1), atol=1e-4, rtol=1e-4)


def test_channels_beyond_the_fourth_are_for_the_unet_alone() -> None:
    model = make_sd1()
    model.unet = SD1UNet(9, channels=(32, 64, 64, 64), text_embedding_dim=32)
    x = torch.randn(1, 9, 8, 8)
    conditions = model.compute_conditions("a cat", size=SIZE)
    assert model(x, step=0, **conditions).shape == (1, 4, 8, 8)


def test_a_copy_shares_weights_and_settings(model: LatentDiffusionModel) -> None:
    model.set_inference_steps(3)
    model.classifier_free_guidance = False
    copy = model.structural_copy()
    assert type(copy) is type(model) and copy.solver is model.solver and not copy.classifier_free_guidance
    assert copy.unet is not model.unet
    shared = dict(model.named_parameters())
    assert shared and all(parameter is shared[name] for name, parameter in copy.named_parameters())
    assert torch.equal(sample(copy, [1], ["a cat"]), sample(model, [1], ["a cat"]))


@pytest.mark.parametrize("move", [lambda m: m.to(dtype=torch.float64), lambda m: m.double()], ids=["to", "double"])
def test_a_move_reaches_the_solver(model: LatentDiffusionModel, move: Callable[[fl.Module], fl.Module]) -> None:
    assert move(model) is model
    assert model.dtype == torch.float64 == model.solver.dtype
    assert sample(model, [1], ["a cat"]).dtype == torch.float64


def test_image_to_image(model: LatentDiffusionModel) -> None:
    image = Image.effect_noise((80, 80), 50).convert("RGB")
    model.solver = DDIM(10)
    model.set_inference_steps(10, first_step=6)
    assert model.steps == [6, 7, 8, 9]
    noise = torch.randn(1, 4, 8, 9)
    latents = model.init_latents(SIZE, init_image=image, noise=noise)
    encoded = model.lda.image_to_latents(image.resize((72, 64)))
    assert torch.equal(latents, model.solver.add_noise(encoded, noise, 6))
    several = model.init_latents(SIZE, init_image=[image, image.rotate(90)], noise=torch.cat((noise, noise)))
    torch.testing.assert_close(several[:1], latents, atol=1e-5, rtol=1e-5)
    assert model.init_latents(SIZE, init_image=image, noise=torch.cat((noise, noise))).shape[0] == 2


def test_noise_alone_has_the_scale_of_the_solver(model: LatentDiffusionModel) -> None:
    model.solver = Euler(5)
    noise = torch.randn(1, 4, 8, 9)
    torch.testing.assert_close(model.init_latents(SIZE, noise=noise), noise * model.solver.init_noise_sigma)


def test_generate_is_the_loop(model: LatentDiffusionModel) -> None:
    seen: list[int] = []
    image, other = model.generate(
        ["a cat", "two dogs"], size=SIZE, num_steps=4, seed=[3, 4], on_step=lambda step, x: seen.append(step)
    )
    assert seen == [0, 1, 2, 3]
    expected = model.lda.latents_to_images(sample(model, [3, 4], ["a cat", "two dogs"]))
    assert [image.tobytes(), other.tobytes()] == [item.tobytes() for item in expected]
    assert model.generate("a cat", size=SIZE, num_steps=4, seed=3)[0].size == (72, 64)
    several = model.generate("a cat", size=SIZE, num_steps=2, seed=[1, 2, 3])
    assert len(several) == 3


def test_generate_from_an_image_keeps_more_of_it_at_a_lower_strength(model: LatentDiffusionModel) -> None:
    image = Image.new("RGB", (72, 64), (90, 10, 200))
    steps: list[int] = []
    for strength in (0.0, 0.5, 1.0):
        model.generate(
            "", size=SIZE, num_steps=5, init_image=image, strength=strength, on_step=lambda step, _: steps.append(step)
        )
    assert steps == [4, 2, 3, 4, 0, 1, 2, 3, 4]


def test_errors_of_a_step() -> None:
    model = make_sd1()
    x, embedding = torch.randn(2, 4, 8, 9), torch.randn(4, 77, 32)
    with pytest.raises(AssertionError, match="invalid batch size for classifier-free guidance"):
        model(x, step=0, clip_text_embedding=embedding[:3])
    with pytest.raises(
        ValueError, match="clip_text_embedding must have 4 items for 2 images, a negative and a positive"
    ):
        model(x, step=0, clip_text_embedding=embedding[:2])
    with pytest.raises(AssertionError, match="invalid step 30"):
        model(x, step=30, clip_text_embedding=embedding)
    model.classifier_free_guidance = False
    with pytest.raises(ValueError, match=re.escape("clip_text_embedding must have 2 items for 2 images, got 4")):
        model(x, step=0, clip_text_embedding=embedding)


def test_errors_of_init_latents() -> None:
    model = make_sd1()
    with pytest.raises(
        AssertionError, match=r"noise shape is not compatible with the size: expected \(batch, 4, 8, 9\)"
    ):
        model.init_latents(SIZE, noise=torch.randn(1, 4, 9, 8))
    with pytest.raises(ValueError, match="must agree on the size of the batch, got batch_size: 3, noise: 2"):
        model.init_latents(SIZE, noise=torch.randn(2, 4, 8, 9), batch_size=3)
    images = [Image.new("RGB", (8, 8))] * 2
    with pytest.raises(ValueError, match="must agree on the size of the batch, got batch_size: 3, init_image: 2"):
        model.init_latents(SIZE, init_image=images, batch_size=3)


def test_zero_terminal_snr_and_velocity_run(model: LatentDiffusionModel) -> None:
    model.solver = DDIM(
        4,
        params=SolverParams(
            model_prediction_type="velocity", rescale_zero_terminal_snr=True, timesteps_spacing="trailing"
        ),
    )
    assert sample(model, [1], ["a cat"]).isfinite().all()
