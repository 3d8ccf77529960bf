"""Stable Diffusion 1.5: its prompts, and painting into a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.latent_diffusion import SD1Autoencoder, SD1UNet, StableDiffusion_1_Inpainting

IMAGE = Image.effect_noise((72, 64), 80).convert("RGB")
MASK = Image.new("L", (72, 64))
ImageDraw.Draw(MASK).rectangle((16, 8, 47, 39), fill=255)


@pytest.fixture
def model() -> StableDiffusion_1_Inpainting:
    return StableDiffusion_1_Inpainting(
        unet=SD1UNet(9, channels=(32, 64, 64, 64), text_embedding_dim=32),
        lda=SD1Autoencoder(channels=(32, 32, 64, 64)),
        clip_text_encoder=CLIPTextEncoder(embedding_dim=32, num_layers=2, num_attention_heads=4, feedforward_dim=64),
    ).requires_grad_(False)


def test_prompts_are_encoded_in_one_batch(model: StableDiffusion_1_Inpainting) -> None:
    encode = model.clip_text_encoder
    both = model.compute_clip_text_embedding(["a cat", "two dogs"], ["", "bad"])
    alone = torch.cat([encode(text) for text in ("", "bad", "a cat", "two dogs")])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.compute_clip_text_embedding(["a cat", "two dogs"], "bad")[:2], alone[[1, 1]])
    model.classifier_free_guidance = False
    torch.testing.assert_close(model.compute_clip_text_embedding("a cat", "bad"), alone[2:3])


def test_numbers_of_prompts_must_agree(model: StableDiffusion_1_Inpainting) -> None:
    message = "The length of the text list and negative_text should be the same: got 2 and 3"
    with pytest.raises(AssertionError, match=message):
        model.compute_clip_text_embedding(["a", "b"], ["", "", ""])


def test_conditions_of_a_mask(model: StableDiffusion_1_Inpainting) -> None:
    mask, latents = model.set_inpainting_conditions(IMAGE, MASK)
    expected = torch.zeros(1, 1, 8, 9)
    expected[..., 1:5, 2:6] = 1
    assert torch.equal(mask, expected)
    covered = IMAGE.copy()
    covered.paste((0, 0, 0), mask=MASK)
    visible = torch.tensor(list(covered.tobytes())).view(1, 64, 72, 3).permute(0, 3, 1, 2) / 127.5 - 1
    visible[..., 8:40, 16:48] = 0
    torch.testing.assert_close(latents, model.lda.encode(visible), atol=1e-4, rtol=1e-4)
    assert torch.equal(model.set_inpainting_conditions(IMAGE, MASK, (8, 9))[0], mask)


def test_the_unet_sees_scaled_latents_and_the_conditions_as_they_are(model: StableDiffusion_1_Inpainting) -> None:
    from refiners.foundationals.latent_diffusion.solvers import Euler

    model.solver = Euler(5)
    model.set_inpainting_conditions(IMAGE, MASK)
    seen: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = model.init_latents((64, 72), batch_size=2)
    embedding = model.compute_clip_text_embedding(["a", "b"])
    assert model(x, step=0, clip_text_embedding=embedding).shape == (2, 4, 8, 9)
    scaled = model.solver.scale_model_input(x, 0)
    assert torch.equal(seen[0][:, :4], torch.cat((scaled, scaled)))
    assert torch.equal(seen[0][:, 4:5], model.mask_latents.expand(4, -1, -1, -1))
    assert torch.equal(seen[0][:, 5:], model.target_image_latents.expand(4, -1, -1, -1))


def test_one_mask_for_each_image(model: StableDiffusion_1_Inpainting) -> None:
    masks = [MASK, MASK.rotate(180)]
    together = model.set_inpainting_conditions([IMAGE, IMAGE], masks)
    for i in range(2):
        for whole, one in zip(together, model.set_inpainting_conditions(IMAGE, masks[i])):
            torch.testing.assert_close(whole[i : i + 1], one, atol=1e-5, rtol=1e-5)


def test_conditions_move_with_the_model_and_its_copies(model: StableDiffusion_1_Inpainting) -> None:
    model.set_inpainting_conditions(IMAGE, MASK)
    assert "mask_latents" not in model.state_dict()
    assert model.structural_copy().mask_latents is model.mask_latents
    model.double()
    assert model.mask_latents.dtype == model.target_image_latents.dtype == torch.float64


def test_errors(model: StableDiffusion_1_Inpainting) -> None:
    embedding = model.compute_clip_text_embedding("a cat")
    with pytest.raises(AssertionError, match="call set_inpainting_conditions before the first step"):
        model(torch.randn(1, 4, 8, 9), step=0, clip_text_embedding=embedding)
    with pytest.raises(ValueError, match=r"must have one size \(width, height\), got \[\(8, 8\), \(72, 64\)\]"):
        model.set_inpainting_conditions(IMAGE, Image.new("L", (8, 8)))
    with pytest.raises(ValueError, match="one mask for each image, got 1 for 2"):
        model.set_inpainting_conditions([IMAGE, IMAGE], MASK)
    with pytest.raises(ValueError, match=r"latents_size must be \(8, 9\) for images of 64x72 pixels, got \(64, 64\)"):
        model.set_inpainting_conditions(IMAGE, MASK, latents_size=(64, 64))
    assert model.mask_latents is None
    model.set_inpainting_conditions(IMAGE, MASK)
    with pytest.raises(ValueError, match="conditions are for 64x72 pixels"):
        model(torch.randn(1, 4, 8, 8), step=0, clip_text_embedding=embedding)


def test_generate_takes_the_size_of_the_mask(model: StableDiffusion_1_Inpainting) -> None:
    model.set_inpainting_conditions(IMAGE, MASK)
    assert model.generate("a cat", num_steps=1)[0].size == (72, 64)


def test_generate_needs_the_mask_before_any_work(
    model: StableDiffusion_1_Inpainting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.clip_text_encoder, "forward", None)
    with pytest.raises(AssertionError, match="call set_inpainting_conditions before the first step"):
        model.generate("a cat")
    model.set_inpainting_conditions([IMAGE, IMAGE], [MASK, MASK])
    with pytest.raises(ValueError, match="the conditions are for 64x72 pixels and 2 images, x for 64x72 and 3"):
        model.generate("a cat", seed=[1, 2, 3])
    with pytest.raises(ValueError, match="the conditions are for 64x72 pixels and 2 images, x for 64x64 and 2"):
        model.generate(["a", "b"], size=(64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cat.png", MASK), "target_image must be a PIL image .* got str: open it by PIL.Image.open"),
        ((IMAGE, torch.zeros(1, 1, 8, 9)), "mask must be a PIL image .* got Tensor"),
        ((IMAGE, [None]), "mask must be a PIL image .* got a list with NoneType"),
    ],
)
def test_what_is_no_image_is_told(
    arguments: tuple[Any, Any], message: str, model: StableDiffusion_1_Inpainting
) -> None:
    with pytest.raises(TypeError, match=message):
        model.set_inpainting_conditions(*arguments)
    assert model.mask_latents is None


def test_latents_of_other_channels_are_told(model: StableDiffusion_1_Inpainting) -> None:
    model.set_inpainting_conditions(IMAGE, MASK)
    embedding = model.compute_clip_text_embedding("a cat")
    with pytest.raises(ValueError, match=r"x must be \(batch, 4, height, width\), got \(1, 3, 8, 9\)"):
        model(torch.randn(1, 3, 8, 9), step=0, clip_text_embedding=embedding)
