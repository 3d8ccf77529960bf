"""Multipliers by place."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Conv2dLora, LinearLora, LoraAdapter
from refiners.fluxion.adapters.lora import LowRankFactors, Region, WeightUpdate
from refiners.fluxion.adapters.lora.region import factors_like

LEFT = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2)  # 2 by 4


def test_images_and_tokens() -> None:
    region = Region(LEFT, scale=3.0)
    of_image, of_tokens = region(torch.zeros(5, 7, 2, 4)), region(torch.zeros(5, 8, 7))
    assert isinstance(of_image, Tensor) and isinstance(of_tokens, Tensor)
    assert of_image.shape == (1, 1, 2, 4) and torch.equal(of_image[0, 0], 3 * LEFT)
    assert of_tokens.shape == (1, 8, 1) and torch.equal(of_tokens.flatten(), 3 * LEFT.flatten())


def test_the_mask_is_averaged_where_places_are_fewer_and_repeated_where_they_are_more() -> None:
    region = Region(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    fewer, more = region(torch.zeros(1, 2, 3)), region(torch.zeros(1, 1, 4, 8))
    assert isinstance(fewer, Tensor) and fewer.flatten().tolist() == [0.75, 0]
    assert isinstance(more, Tensor) and torch.equal(more[0, 0, ::2, ::2], region.mask[0])
    assert torch.equal(more[0, 0, 1::2, 1::2], region.mask[0])


@pytest.mark.parametrize("shape", [(5, 7), (7,), (2, 2, 2, 2, 2)], ids=str)
def test_what_has_no_places(shape: tuple[int, ...]) -> None:
    assert Region(LEFT, scale=3.0, elsewhere=0.25)(torch.zeros(shape)) == 0.25


@pytest.mark.parametrize(
    ("mask", "shape", "message"),
    [
        ((512, 512), (2, 16 * 24, 3), "one of 512x512 fits no result of 384 tokens"),
        ((512, 512), (2, 77, 3), "one of 512x512 fits no result of 77 tokens"),
        ((512, 512), (2, 3, 16, 24), "one of 512x512 fits no result of 16x24 places"),
        ((512, 768), (2, 3, 24, 16), "one of 512x768 fits no result of 24x16 places"),
        ((512, 768), (2, 3, 64, 94), "one of 512x768 fits no result of 64x94 places"),
    ],
    ids=["tokens", "prompt", "square", "turned", "nearly"],
)
def test_other_proportions_than_those_of_the_mask(mask: tuple[int, int], shape: tuple[int, ...], message: str) -> None:
    region = Region(torch.ones(mask))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"mask must have the proportions of the image: {message}$"):
            region(torch.zeros(shape))


def test_images_that_were_halved_and_rounded() -> None:
    region = Region(torch.ones(520, 768))
    for sides in ((65, 96), (33, 48), (17, 24), (9, 12), (32, 48), (16, 24)):  # up, then down
        of_image, of_tokens = region(torch.zeros(1, 3, *sides)), region(torch.zeros(1, sides[0] * sides[1], 3))
        assert isinstance(of_image, Tensor) and of_image.shape == (1, 1, *sides)
        assert isinstance(of_tokens, Tensor) and of_tokens.shape == (1, sides[0] * sides[1], 1)


def test_the_mask_is_a_copy() -> None:
    mask = LEFT.clone()
    region = Region(mask)
    mask.zero_()
    assert torch.equal(region.mask, LEFT[None])


def test_one_mask_for_each_sample_and_for_pairs_of_them() -> None:
    region = Region(torch.stack((LEFT, 1 - LEFT)))
    two, four = region(torch.zeros(2, 3, 2, 4)), region(torch.zeros(4, 3, 2, 4))
    assert isinstance(two, Tensor) and isinstance(four, Tensor)
    assert torch.equal(two[:, 0], region.mask) and torch.equal(four, torch.cat((two, two)))
    with pytest.raises(ValueError, match="mask must be one, or one for each of 3 samples, got 2"):
        region(torch.zeros(3, 3, 2, 4))


@pytest.mark.parametrize(
    ("count", "sides", "expected"),
    [
        (4096, (512, 512), (64, 64)),
        (6144, (512, 768), (64, 96)),
        (17 * 24, (520, 768), (17, 24)),  # 65 x 96 after two halvings, rounded up
        (9 * 12, (520, 768), (9, 12)),
        (77, (512, 512), None),
        (1, (64, 64), (1, 1)),
        (2, (64, 64), None),
        (97, (512, 768), None),
    ],
    ids=str,
)
def test_proportions(count: int, sides: tuple[int, int], expected: tuple[int, int] | None) -> None:
    assert factors_like(count, sides) == expected


def test_images_as_masks() -> None:
    image = Image.new("RGB", (4, 2), "white")
    image.paste((0, 0, 0), (2, 0, 4, 2))
    assert torch.equal(Region.of_images(image).mask, LEFT[None])
    assert Region.of_images([image, image], scale=2.0).mask.shape == (2, 2, 4)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("a.png", TypeError, "images must be a PIL image or a list of them, got str"),
        (LEFT, TypeError, "images must be a PIL image or a list of them, got Tensor"),
        (["a.png"], TypeError, "images must be a PIL image or a list of them, got a list with str"),
        ([], ValueError, "images must be at least one, and all of one size, got none"),
        ([Image.new("L", (4, 2)), Image.new("L", (2, 4))], ValueError, "all of one size, got 4x2 and 2x4"),
    ],
    ids=["path", "tensor", "list of paths", "empty", "sizes"],
)
def test_wrong_images(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Region.of_images(images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": [[1.0]]}, TypeError, "mask must be a tensor of floating-point numbers, got list"),
        ({"mask": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"mask": torch.ones(4)}, ValueError, r"mask must be .*, got \(4,\)"),
        ({"mask": torch.ones(0, 4)}, ValueError, r"mask must be .*, got \(0, 4\)"),
        ({"mask": LEFT * 2}, ValueError, "mask must have numbers from 0 to 1"),
        ({"mask": LEFT / 0}, ValueError, "mask must have numbers from 0 to 1"),
        ({"mask": LEFT, "scale": "1"}, TypeError, "scale must be a number, got str"),
        ({"mask": LEFT, "elsewhere": float("nan")}, ValueError, "elsewhere must be finite, got nan"),
    ],
    ids=["list", "integers", "dimensions", "empty", "range", "not finite", "scale", "elsewhere"],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Region(**arguments)


def linear_adapter(layer: fl.Linear) -> LoraAdapter:
    loras = [LinearLora(name, in_features=6, out_features=5, rank=3, dtype=torch.float64) for name in "ab"]
    for lora in loras:
        torch.nn.init.normal_(lora.up.weight)
    return LoraAdapter(layer, *loras)


def conv_adapter(layer: fl.Conv2d, kernel_size: tuple[int, int]) -> LoraAdapter:
    padding = (kernel_size[0] // 2, kernel_size[1] // 2)
    options: dict[str, Any] = {"rank": 3, "kernel_size": kernel_size, "padding": padding, "dtype": torch.float64}
    loras = [Conv2dLora(name, in_channels=6, out_channels=5, **options) for name in "ab"]
    for lora in loras:
        torch.nn.init.normal_(lora.up.weight)
    return LoraAdapter(layer, *loras)


def expected_of(adapter: LoraAdapter, x: Tensor, scales: dict[str, Tensor]) -> Tensor:
    y = adapter.target(x)
    for name, lora in adapter.loras.items():
        y = y + scales[name] * lora[1](lora[0](x))
    return y


@torch.no_grad()
@pytest.mark.parametrize("edited", [False, True])
def test_two_halves_of_a_sequence(edited: bool) -> None:
    adapter = linear_adapter(fl.Linear(6, 5, dtype=torch.float64))
    if edited:
        adapter.append(fl.Multiply(0.0))  # then the children are called
        adapter.append(fl.Lambda(lambda x: 0))
        adapter.pop(len(adapter) - 2)
    x = torch.randn(3, 8, 6, dtype=torch.float64)
    mask = LEFT.double().flatten()[:, None]
    adapter.scale = {"a": Region(LEFT, 0.5), "b": Region(1 - LEFT, 2.0)}
    torch.testing.assert_close(adapter(x), expected_of(adapter, x, {"a": 0.5 * mask, "b": 2 * (1 - mask)}))


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [(3, 1), (1, 3)])
def test_two_halves_of_an_image(kernel_size: tuple[int, int]) -> None:
    adapter = conv_adapter(fl.Conv2d(6, 5, kernel_size=3, padding=1, dtype=torch.float64), kernel_size)
    x, mask = torch.randn(3, 6, 2, 4, dtype=torch.float64), LEFT.double()
    adapter.scale = {"a": Region(LEFT, 0.5), "b": 1.5}
    expected = expected_of(adapter, x, {"a": 0.5 * mask, "b": torch.tensor(1.5)})
    torch.testing.assert_close(adapter(x), expected)


@torch.no_grad()
def test_updates_of_other_kinds() -> None:
    layer = fl.Linear(6, 5, dtype=torch.float64)
    down, up = torch.randn(3, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    update = WeightUpdate("a", layer, LowRankFactors(layer, down, up))
    adapter = LoraAdapter(layer, update)
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    update.scale = Region(LEFT, 0.5)
    torch.testing.assert_close(adapter(x), layer(x) + 0.5 * LEFT.double().flatten()[:, None] * (x @ down.T @ up.T))


def test_factors_and_layers_without_places() -> None:
    lora = LinearLora("a", in_features=6, out_features=5)
    lora.scale = Region(LEFT, 0.5, elsewhere=0.25)
    lora.factor = 3.0
    total = lora.total_scale
    assert isinstance(total, Region) and (total.scale, total.elsewhere) == (1.5, 0.75)
    lora.has_places = False
    assert lora.total_scale == 0.75
    lora.scale = 2.0
    assert lora.total_scale == 6.0 == lora.ensure_find(fl.Multiply).scale


def test_a_compiled_adapter() -> None:
    adapter = linear_adapter(fl.Linear(6, 5, dtype=torch.float64))
    adapter.scale = {"a": Region(LEFT)}
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(adapter, fullgraph=True, backend="eager")(x), adapter(x))
