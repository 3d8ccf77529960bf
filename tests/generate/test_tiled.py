"""Large images in the memory of a tile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import refiners.fluxion.layers as fl
import refiners.generate.tiled as tiled
from refiners.foundationals.latent_diffusion.auto_encoder import Decoder, Encoder, FixedGroupNorm
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1Autoencoder
from refiners.generate import main
from refiners.generate.tiled import use_tiles

FolderOf = Callable[[str], Path]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE", 64)
    monkeypatch.setattr(tiled, "BLENDING", 16)


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the longest sides, in pixels, of all that the halves of autoencoders are called with."""
    sides: list[int] = []
    for kind, factor in ((Encoder, 1), (Decoder, 8)):

        def call(self: torch.nn.Module, x: Tensor, factor: int = factor, before=kind.forward) -> Tensor:
            sides.append(factor * max(x.shape[2:]))
            return before(self, x)

        monkeypatch.setattr(kind, "forward", call)
    return sides


@pytest.fixture
def lda() -> SD1Autoencoder:
    torch.manual_seed(0)
    return SD1Autoencoder(channels=(8, 8, 16, 16), num_groups=4).requires_grad_(False)


def to_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_decoding_comes_close_to_that_of_the_whole(
    lda: SD1Autoencoder, largest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "TILE", 128)
    x = torch.randn(2, 4, 32, 24)
    expected = lda.latents_to_images(x)
    largest.clear()
    use_tiles(lda)
    found = lda.latents_to_images(x)
    assert len(largest) == 2 * (1 + 3 * 2) and max(largest) == 128  # for each image, its reduction and the tiles
    assert [image.size for image in found] == [(192, 256)] * 2
    for one, other in zip(found, expected):
        assert abs(to_array(one) - to_array(other)).mean() < 0.25 * to_array(other).std()
    assert not list(lda.walk(FixedGroupNorm))


def test_encoding_is_that_of_tiled_inference(lda: SD1Autoencoder, largest: list[int]) -> None:
    images = [Image.effect_noise((128, 64), sigma).convert("RGB") for sigma in (30, 60)]
    expected: list[Tensor] = []
    for image in images:
        with lda.tiled_inference(image, (64, 64), 16):
            expected.append(lda.tiled_image_to_latents(image))
    largest.clear()
    use_tiles(lda)
    assert torch.equal(lda.images_to_latents(images), torch.cat(expected))
    assert torch.equal(lda.image_to_latents(images[1]), expected[1])
    assert max(largest) == 64


def test_small_images_are_as_ever(lda: SD1Autoencoder) -> None:
    x, image = torch.randn(1, 4, 8, 5), Image.effect_noise((64, 40), 50).convert("RGB")
    expected = lda.latents_to_image(x).tobytes(), lda.image_to_latents(image)
    use_tiles(lda)
    assert lda.latents_to_image(x).tobytes() == expected[0] and torch.equal(lda.image_to_latents(image), expected[1])


def test_what_float16_cannot_hold_is_in_no_statistic(lda: SD1Autoencoder) -> None:
    x = torch.randn(1, 4, 16, 16)
    lda.layer("Decoder", Decoder).layer(0, fl.Conv2d).weight.mul_(1e5)  # normalized away before the end
    use_tiles(lda)
    expected = to_array(lda.latents_to_image(x))
    found = to_array(lda.to(dtype=torch.float16).latents_to_image(x.half()))
    assert abs(found - expected).max() <= 4 and expected.std() > 10


def test_the_command_decodes_and_encodes_in_tiles(folder_of: FolderOf, tmp_path: Path, largest: list[int]) -> None:
    picture = tmp_path / "in.png"
    Image.effect_noise((136, 72), 50).convert("RGB").save(picture)
    argv = [
        "--checkpoint",
        str(folder_of("SD15")),
        "--prompt",
        "a",
        "--steps",
        "1",
        "--seed",
        "1",
        "--init",
        str(picture),
    ]
    assert main([*argv, "--out", str(tmp_path / "out.png"), "--tiled", "--preview", "1"]) == 0
    assert max(largest) == 64
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (136, 72)
    largest.clear()
    assert main([*argv, "--out", str(tmp_path / "out.png")]) == 0
    assert max(largest) == 136
