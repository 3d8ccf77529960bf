"""What Stable Diffusion XL is told about sizes."""

from __future__ import annotations

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.latent_diffusion import DoubleTextEncoder, SDXLAutoencoder, SDXLUNet, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.timestep_encoder import TextTimeEmbedding


@pytest.fixture
def model() -> StableDiffusion_XL:
    def encoder(dim: int) -> CLIPTextEncoder:
        return CLIPTextEncoder(embedding_dim=dim, num_layers=2, num_attention_heads=4, feedforward_dim=64)

    unet = SDXLUNet(
        4,
        channels=(32, 64, 64),
        text_embedding_dim=96,
        pooled_text_embedding_dim=64,
        num_attention_layers=(0, 1, 2),
        head_dim=32,
        time_ids_embedding_dim=8,
    )
    lda = SDXLAutoencoder(channels=(32, 32, 64, 64))
    text_encoder = DoubleTextEncoder(encoder(32), encoder(64))
    return StableDiffusion_XL(unet=unet, lda=lda, clip_text_encoder=text_encoder).requires_grad_(False)


def test_default_time_ids(model: StableDiffusion_XL) -> None:
    row = [1024, 1024, 0, 0, 1024, 1024]
    assert torch.equal(model.default_time_ids, torch.tensor([row, row]))
    model.classifier_free_guidance = False
    assert torch.equal(model.default_time_ids, torch.tensor([row]))
    assert model.default_time_ids.dtype == torch.int64


def test_time_ids_of_a_size(model: StableDiffusion_XL) -> None:
    model.classifier_free_guidance = False
    assert model.compute_time_ids((832, 1216)).tolist() == [[832, 1216, 0, 0, 832, 1216]]
    assert model.compute_time_ids((832, 1216), (300, 400), (5, 6)).tolist() == [[300, 400, 5, 6, 832, 1216]]


@torch.no_grad()
def test_the_rows_of_one_image_stand_for_those_of_all(model: StableDiffusion_XL) -> None:
    x = torch.randn(2, 4, 8, 8)
    embedding, pooled = model.compute_clip_text_embedding(["a", "b"])
    negative, positive = model.compute_time_ids((64, 64)), model.compute_time_ids((640, 64))
    rows = torch.cat((negative[:1], positive[:1]))
    arguments = {"clip_text_embedding": embedding, "pooled_text_embedding": pooled}
    expected = model(x, step=0, time_ids=rows[[0, 0, 1, 1]], **arguments)
    torch.testing.assert_close(model(x, step=0, time_ids=rows, **arguments), expected)
    other = model(x, step=0, time_ids=rows.flip(0), **arguments)
    assert not torch.allclose(other, expected, atol=1e-3)


@torch.no_grad()
def test_the_rows_for_all_images_are_the_same_tensor_at_each_step(model: StableDiffusion_XL) -> None:
    embedding, pooled = model.compute_clip_text_embedding(["a", "b"])
    rows, seen = model.compute_time_ids((64, 64)), list[torch.Tensor]()
    time_ids = model.unet.ensure_find(TextTimeEmbedding).layer(("Concatenate", "Chain", "UseContext"), fl.UseContext)
    time_ids.compose(lambda x: seen.append(x) or x)
    for step in model.steps[:2]:
        model(torch.randn(2, 4, 8, 8), step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=rows)
    assert len(seen[0]) == 4 and all(each is seen[0] for each in seen)


@torch.no_grad()
def test_time_ids_that_are_made_anew_at_each_step(model: StableDiffusion_XL) -> None:
    """Equal ones, and then others: each step gets those it was given."""
    model.set_inference_steps(4)
    embedding, pooled = model.compute_clip_text_embedding("a cat")

    def sample(fresh: bool, kept: bool) -> torch.Tensor:
        x, time_ids = model.init_latents((64, 64), generator=torch.Generator().manual_seed(0)), model.default_time_ids
        for step in model.steps:
            rows = time_ids.clone() if fresh else time_ids
            rows = rows // 2 if step == 3 else rows
            with torch.set_grad_enabled(not kept):
                x = model(
                    x, step=step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=rows
                ).detach()
        return x

    expected = sample(fresh=False, kept=False)
    torch.testing.assert_close(sample(fresh=False, kept=True), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sample(fresh=True, kept=True), expected, atol=1e-4, rtol=1e-4)
