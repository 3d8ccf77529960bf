"""Noise: the same for a seed, whatever the dtype, and whatever else is in the batch."""

import pytest
import torch
from torch import Generator

from refiners.foundationals.latent_diffusion.noise import sample_noise

SIZE = (3, 4, 8, 6)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def test_noise_follows_the_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.randn(SIZE)
    torch.manual_seed(7)
    assert torch.equal(sample_noise(SIZE), expected)
    assert torch.equal(sample_noise(SIZE, generator=seeded(7)), expected)


def test_no_offset_is_an_offset_of_zero() -> None:
    assert torch.equal(
        sample_noise(SIZE, offset_noise=0.0, generator=seeded(1)), sample_noise(SIZE, generator=seeded(1))
    )


def test_an_offset_is_one_number_for_each_channel() -> None:
    difference = sample_noise(SIZE, offset_noise=0.5, generator=seeded(1)) - sample_noise(SIZE, generator=seeded(1))
    generator = seeded(1)
    torch.randn(SIZE, generator=generator)
    offset = 0.5 * torch.randn((3, 4, 1, 1), generator=generator)
    torch.testing.assert_close(difference, offset.expand(SIZE), atol=1e-6, rtol=0)


@pytest.mark.parametrize("offset_noise", [None, 0.1])
def test_an_item_does_not_depend_on_the_others(offset_noise: float | None) -> None:
    batch = sample_noise(SIZE, offset_noise=offset_noise, generator=[seeded(5), seeded(6), seeded(7)])
    for i, seed in enumerate((5, 6, 7)):
        alone = sample_noise((1, *SIZE[1:]), offset_noise=offset_noise, generator=seeded(seed))
        assert torch.equal(batch[i : i + 1], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_numbers_do_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    noise = sample_noise(SIZE, dtype=dtype, generator=seeded(3))
    assert noise.dtype == dtype
    assert torch.equal(noise, sample_noise(SIZE, generator=seeded(3)).to(dtype))


@pytest.mark.cuda
def test_a_generator_on_the_cpu_gives_the_same_noise_on_a_gpu() -> None:
    noise = sample_noise(SIZE, device="cuda", generator=seeded(3))
    assert noise.is_cuda
    assert torch.equal(noise.cpu(), sample_noise(SIZE, generator=seeded(3)))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"generator must be one, or one for each of 3 items, got 2"):
        sample_noise(SIZE, generator=[seeded(0), seeded(1)])
    with pytest.raises(
        ValueError, match=r"offset_noise needs a size of \(batch, channels, height, width\), got \(3, 4\)"
    ):
        sample_noise((3, 4), offset_noise=0.1)
