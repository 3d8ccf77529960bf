"""What `generate` is asked for: completed where it is valid, and refused by the name of the argument elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refiners.foundationals.latent_diffusion.requests import ImageRequest, read_request, size_of_image

IMAGE = Image.new("RGB", (75, 61))
VALID: dict[str, Any] = {
    "text": "a cat",
    "negative_text": "",
    "size": None,
    "default_size": (512, 256),
    "num_steps": 30,
    "condition_scale": None,
    "seed": None,
    "init_image": None,
    "strength": 0.8,
    "on_step": None,
}


def read(**changes: Any) -> ImageRequest:
    return read_request(**(VALID | changes))


def test_what_is_left_out_is_completed() -> None:
    request = read()
    assert (request.prompts, request.negatives, request.batch_size) == (["a cat"], [""], 1)
    assert (request.size, request.num_steps, request.first_step) == ((512, 256), 30, 0)
    assert request.condition_scale is None and request.generators is None and request.images == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.num_steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_one_item_stands_for_all() -> None:
    request = read(text=("a", "b", "c"), negative_text=["bad"], seed=[4], init_image=[IMAGE] * 3, num_steps=5)
    assert (request.prompts, request.negatives) == (["a", "b", "c"], ["bad"] * 3)
    assert [generator.initial_seed() for generator in request.generators or []] == [4, 5, 6]
    assert len(request.images) == 3 and request.first_step == 1  # 0.2 of the way from 0 to 4
    assert read(seed=range(3)).prompts == ["a cat"] * 3


def test_numbers_of_any_type_are_numbers() -> None:
    request = read(
        size=(np.int64(64), np.int32(72)),
        num_steps=np.int64(3),
        seed=[np.uint64(2**64 - 1)],
        condition_scale=np.float32(2),
        strength=1,
    )
    assert (request.size, request.num_steps, request.condition_scale) == ((64, 72), 3, 2.0)
    assert {type(value) for value in (*request.size, request.num_steps)} == {int}
    assert read(seed=2**64 - 1).generators is not None


def test_the_size_is_that_of_the_image() -> None:
    assert size_of_image(IMAGE) == (64, 72)
    assert size_of_image(Image.new("RGB", (3, 2))) == (8, 8)
    assert read(init_image=IMAGE).size == (64, 72)
    assert read(init_image=[IMAGE, IMAGE.copy()]).size == (64, 72)
    two_sizes = [IMAGE, Image.new("RGB", (16, 8))]
    assert read(init_image=two_sizes, size=(16, 16)).size == (16, 16)
    with pytest.raises(ValueError, match=r"size must be given for an init_image of several sizes .*\[\(8, 16\), \(61,"):
        read(init_image=two_sizes)


WRONG_TYPES: list[tuple[str, Any, str]] = [
    ("size", 64, r"size must be two positive multiples of 8 \(height, width\), got 64"),
    ("size", (512.0, 512), r"got \(512.0, 512\)"),
    ("size", "512", "got '512'"),
    ("size", (True, 512), r"got \(True, 512\)"),
    ("seed", "x", "seed must be a whole number, got 'x'"),
    ("seed", True, "seed must be a whole number, got True"),
    ("seed", [1, 2.5], "seed must be a whole number, got 2.5"),
    ("init_image", "cat.png", "init_image must be a PIL image or a list of at least one, got str: open it by PIL"),
    ("init_image", Path("cat.png"), "got PosixPath: open it by PIL.Image.open"),
    ("init_image", torch.zeros(1, 3, 8, 8), "got Tensor"),
    ("init_image", [IMAGE, "cat.png"], "got a list with str: open it"),
    ("text", None, "text must be a prompt or a list of at least one, got None"),
    ("text", 3, "got 3"),
    ("text", [None], "got a list with None"),
    ("text", b"a cat", "got bytes"),
    ("negative_text", None, "negative_text must be a prompt or a list of at least one, got None"),
    ("negative_text", ["", 3], "negative_text must be .* got a list with 3"),
    ("condition_scale", "7", "condition_scale must be a number, got '7'"),
    ("strength", "0.5", "strength must be a number, got '0.5'"),
    ("strength", None, "strength must be a number, got None"),
    ("num_steps", 2.5, "num_steps must be a whole number, got 2.5"),
    ("num_steps", "x", "num_steps must be a whole number, got 'x'"),
    ("on_step", 3, "on_step must be a function of the step and the latents, got 3"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_TYPES, ids=lambda value: str(value)[:20])
def test_a_wrong_type_is_told(name: str, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read(**{name: value})


WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"size": (512, 512, 3)}, r"size must be two positive multiples of 8 \(height, width\), got \(512, 512, 3\)"),
    ({"size": (60, 64)}, r"got \(60, 64\)"),
    ({"size": (0, 64)}, r"size must be at least \(8, 8\), got \(0, 64\)"),
    ({"size": (-64, 64)}, r"size must be at least \(8, 8\), got \(-64, 64\)"),
    ({"seed": []}, "seed must be a whole number or a list of at least one, got an empty list"),
    ({"seed": -1}, "seed must be from 0 to 18446744073709551615, got -1"),
    ({"seed": 2**64}, "seed must be from 0 to .*, got 18446744073709551616"),
    ({"seed": 2**64 - 1, "text": ["a", "b"]}, r"seed \+ 1, that of the last image, must be from 0 to"),
    ({"init_image": []}, "init_image must be a PIL image or a list of at least one, got an empty list"),
    ({"init_image": Image.new("RGBA", (8, 8))}, "init_image must be of mode RGB, got RGBA: use image.convert"),
    ({"text": []}, "text must be a prompt or a list of at least one, got an empty list"),
    ({"negative_text": ["a", "b"]}, "text, negative_text, seed and init_image must hold one item, or one for each"),
    ({"text": ["a", "b"], "seed": [1, 2, 3]}, "got {'text': 2, 'negative_text': 1, 'seed': 3, 'init_image': 0}"),
    ({"condition_scale": float("nan")}, "condition_scale must be finite, got nan"),
    ({"strength": float("nan")}, "strength must be finite, got nan"),
    ({"strength": 1.5}, "strength must be between 0 and 1, got 1.5"),
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ({"num_steps": -1}, "num_steps must be at least 1, got -1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_VALUES, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)
