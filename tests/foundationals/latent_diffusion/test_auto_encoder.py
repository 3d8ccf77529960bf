"""The autoencoder: its layout, its parts, and images and their latents."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, group_norm, interpolate, pad, silu
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.foundationals.latent_diffusion.auto_encoder import (
    Decoder,
    Encoder,
    LatentDiffusionAutoencoder,
    Resnet,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1Autoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLAutoencoder


def make(kind: type[LatentDiffusionAutoencoder] = SD1Autoencoder, **options: Any) -> LatentDiffusionAutoencoder:
    return kind(**({"channels": (8, 16, 16, 16), "num_groups": 4} | options))


def draw_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(("kind", "name"), [(SD1Autoencoder, "sd15"), (SDXLAutoencoder, "sdxl")])
def test_the_layout_is_the_published_one(layouts: dict[str, Any], kind: type[fl.Chain], name: str) -> None:
    autoencoder = kind(device="meta")
    layouts[f"{name}_autoencoder"].check_shapes(autoencoder)
    layouts[f"{name}_autoencoder"].check_tree(autoencoder, but=r"eps=1e-06, ")  # the ε are tested below
    assert len(autoencoder.state_dict()) == 248


def test_every_epsilon_is_the_published_one() -> None:
    assert {norm.eps for norm in SD1Autoencoder(device="meta").layers(fl.GroupNorm)} == {1e-6}


def test_the_scales_of_latents() -> None:
    assert (SD1Autoencoder.encoder_scale, SDXLAutoencoder.encoder_scale) == (0.18215, 0.13025)
    assert LatentDiffusionAutoencoder.encoder_scale == 0.18125


def test_a_resnet_is_a_shortcut_and_two_convolutions(randomize: Callable[..., None]) -> None:
    for out_channels, shortcut in ((8, "Identity"), (12, "Conv2d")):
        resnet = Resnet(8, out_channels, num_groups=4)
        randomize(resnet)
        assert list(resnet._modules) == [shortcut, "Chain"]
        w = resnet.state_dict()
        x = torch.randn(2, 8, 5, 6)
        h = silu(group_norm(x, 4, w["Chain.GroupNorm_1.weight"], w["Chain.GroupNorm_1.bias"], eps=1e-6))
        h = conv2d(h, w["Chain.Conv2d_1.weight"], w["Chain.Conv2d_1.bias"], padding=1)
        h = silu(group_norm(h, 4, w["Chain.GroupNorm_2.weight"], w["Chain.GroupNorm_2.bias"], eps=1e-6))
        h = conv2d(h, w["Chain.Conv2d_2.weight"], w["Chain.Conv2d_2.bias"], padding=1)
        through = x if shortcut == "Identity" else conv2d(x, w["Conv2d.weight"], w["Conv2d.bias"])
        assert_close(resnet(x), through + h)


def test_attributes_of_the_parts() -> None:
    encoder, decoder = Encoder(device="meta"), Decoder(device="meta")
    assert encoder.resnet_sizes == decoder.resnet_sizes == [128, 256, 512, 512, 512]
    assert (encoder.input_channels, decoder.output_channels, encoder.latent_dim, decoder.latent_dim) == (3, 3, 4, 4)
    assert SD1Autoencoder(device="meta").downscale_factor == 8


def test_the_ends_change_the_resolution_as_published() -> None:
    autoencoder = make()
    down = autoencoder.ensure_find(fl.Downsample)
    up = autoencoder.ensure_find(fl.Upsample)
    w = down.state_dict() | {f"up.{key}": value for key, value in up.state_dict().items()}
    x = torch.randn(1, 8, 6, 7)
    assert_close(down(x), conv2d(pad(x, (0, 1, 0, 1)), w["Conv2d.weight"], w["Conv2d.bias"], stride=2))
    x = torch.randn(1, 16, 3, 4)
    assert_close(up(x), conv2d(interpolate(x, scale_factor=2), w["up.Conv2d.weight"], w["up.Conv2d.bias"], padding=1))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 72), (67, 31)])
def test_latents_have_an_eighth_of_the_pixels(height: int, width: int) -> None:
    autoencoder = make()
    z = autoencoder.encode(torch.zeros(2, 3, height, width))
    assert z.shape == (2, 4, height // 8, width // 8)
    assert autoencoder.decode(z).shape == (2, 3, height // 8 * 8, width // 8 * 8)


def test_the_scale_applies_to_the_latents() -> None:
    autoencoder = make(SDXLAutoencoder)
    encoder, decoder = autoencoder.layer("Encoder", Encoder), autoencoder.layer("Decoder", Decoder)
    x, z = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    assert torch.equal(autoencoder.encode(x), 0.13025 * encoder(x))
    assert torch.equal(autoencoder.decode(z), decoder(z / 0.13025))


def test_the_latents_are_the_means(randomize: Callable[..., None]) -> None:
    autoencoder = make()
    randomize(autoencoder)
    encoder = autoencoder.layer("Encoder", Encoder)
    moments = encoder.layer("Chain_3", fl.Chain)
    x, h = torch.randn(1, 3, 16, 16), []
    moments.insert(1, fl.Lambda(lambda x: h.append(x) or x))
    assert torch.equal(encoder(x), h[0][:, :4])
    assert h[0].shape[1] == 8


def test_images_and_their_latents() -> None:
    autoencoder = make()
    images = [draw_image(24, 16, seed) for seed in range(3)]
    pixels = np.stack([np.asarray(image) for image in images])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    z = autoencoder.images_to_latents(images)
    assert_close(z, autoencoder.encode(x))
    assert_close(autoencoder.image_to_latents(images[1]), z[1:2])
    decoded = autoencoder.latents_to_images(z)
    expected = (((autoencoder.decode(z) + 1) / 2).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    assert [image.mode for image in decoded] == ["RGB"] * 3
    assert np.array_equal(np.stack([np.asarray(image) for image in decoded]), expected)
    alone = np.asarray(autoencoder.latents_to_image(z[2:])).astype(int)
    assert abs(alone - expected[2]).max() <= 1  # a batch may be rounded otherwise


def test_black_and_white_are_the_ends() -> None:
    autoencoder = make()
    output = autoencoder.layer("Decoder", Decoder).layer(("Chain_2", "Conv2d"), fl.Conv2d)
    torch.nn.init.zeros_(output.weight)
    for bias, color in ((-1.0, 0), (-1.5, 0), (1.0, 255), (3.0, 255), (0.0, 127)):
        torch.nn.init.constant_(output.bias, bias)
        assert np.unique(np.asarray(autoencoder.latents_to_image(torch.zeros(1, 4, 1, 1)))).tolist() == [color]


def test_images_that_cannot_be_encoded_are_named() -> None:
    autoencoder = make()
    with pytest.raises(ValueError, match=r"images must be of mode RGB, got RGBA: use image.convert\('RGB'\)"):
        autoencoder.image_to_latents(Image.new("RGBA", (16, 16)))
    with pytest.raises(ValueError, match=r"images must all be of one size, got \(16, 16\) and \(24, 16\)"):
        autoencoder.images_to_latents([draw_image(16, 16), draw_image(24, 16)])
    with pytest.raises(ValueError, match="images must hold at least one image, got none"):
        autoencoder.images_to_latents([])


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 7, 16)], ids=str)
def test_inputs_that_cannot_be_encoded_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must be \(batch, 3, height, width\) with sides of at least 8 pixels, got"):
        make().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 2, 2), (1, 3, 2, 2)], ids=str)
def test_latents_that_cannot_be_decoded_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must be \(batch, 4, height, width\), got \("):
        make().decode(torch.zeros(shape))


def test_one_image_needs_the_latents_of_one() -> None:
    with pytest.raises(ValueError, match=r"x must be a batch of one, got \(2, 4, 1, 1\): use latents_to_images"):
        make().latents_to_image(torch.zeros(2, 4, 1, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"channels": ()}, "channels must hold a number"), ({"channels": (8, 10)}, "divisible by num_groups 4, got 10")],
)
def test_sizes_that_do_not_fit_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_sizes_may_be_others() -> None:
    autoencoder = make(channels=(8, 12), latent_dim=3)
    assert autoencoder.downscale_factor == 2
    assert autoencoder.encode(torch.zeros(1, 3, 8, 6)).shape == (1, 3, 4, 3)


def test_a_call_leaves_no_shapes_behind() -> None:
    autoencoder = make()
    encoder = autoencoder.layer("Encoder", Encoder)
    encoder.append(fl.Lambda(lambda _: 1 / 0))
    with pytest.raises(ChainError):
        autoencoder.encode(torch.zeros(1, 3, 16, 16))
    assert encoder.use_context("sampling") == {"shapes": []}


def test_an_autoencoder_can_be_pickled_and_copied() -> None:
    autoencoder, x = make(), torch.randn(1, 3, 16, 24)
    expected = autoencoder(x)
    for other in (pickle.loads(pickle.dumps(autoencoder)), autoencoder.structural_copy()):
        assert torch.equal(other(x), expected)
        assert torch.equal(other.encode(x), autoencoder.encode(x))


def test_the_memory_format_does_not_matter(error: Callable[..., float], copies: Any) -> None:
    autoencoder, x = make(), torch.randn(1, 3, 16, 24)
    expected = autoencoder(x)
    autoencoder.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad(), copies:
        y = autoencoder(x)
    assert copies.found == []
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, expected) < 1e-5


def test_every_weight_is_built_as_asked() -> None:
    autoencoder = make(device="meta", dtype=torch.float16)
    assert {(weight.device.type, weight.dtype) for weight in autoencoder.parameters()} == {("meta", torch.float16)}
