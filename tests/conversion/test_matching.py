"""A file that lacks tensors, has others, or has them of another shape or dtype is refused, and says which."""

from typing import Any

import pytest
import torch

from refiners.conversion.checkpoint import StateDict
from refiners.conversion.loading import read_weights
from refiners.conversion.matching import match


@pytest.mark.parametrize("name", ["unet_sd1", "unet_sdxl", "vae", "text_2", "image", "controlnet"])
def test_a_missing_tensor_is_noticed(name: str, tiny: Any) -> None:
    state = getattr(tiny, name).state_dict()
    ours = read_weights(state)
    shapes = {key: tensor.shape for key, tensor in ours.items()}
    shape_of = match(shapes, StateDict(state).infos).recipes
    for key in list(state)[::9]:
        less = {other: tensor for other, tensor in state.items() if other != key}
        with pytest.raises(ValueError, match="missing|structure"):
            match(shapes, StateDict(less).infos)
    assert {recipe.key for recipe in shape_of.values()} == set(state)


@pytest.mark.parametrize("name", ["unet_sd1", "vae", "controlnet"])
def test_without_a_model_a_missing_tensor_is_noticed_too(name: str, tiny: Any) -> None:
    state = getattr(tiny, name).state_dict()
    biases = [key for key in state if "to_out.0.bias" in key]
    for key in [*list(state)[:: 1 if name == "vae" else 9], *biases]:
        less = {other: tensor for other, tensor in state.items() if other != key}
        with pytest.raises(ValueError, match=r"must hold|holds no whole|missing"):
            read_weights(less)


def test_an_unknown_tensor_is_noticed(tiny: Any) -> None:
    state = {**tiny.vae.state_dict(), "encoder.extra.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"holds no whole autoencoder \(diffusers\):\n1 left over:\n    encoder.extra"):
        read_weights(state)


def test_an_unfit_tensor_is_noticed(tiny: Any, to_open_clip: Any) -> None:
    key = "decoder.conv_in.weight"
    state = {**tiny.vae.state_dict(), key: tiny.vae.state_dict()[key].to(torch.int8)}
    with pytest.raises(ValueError, match=rf"1 of another shape or dtype:\n    {key}: got .* in torch.int8"):
        read_weights(state)
    joint = to_open_clip(tiny.text_2.state_dict())
    key = "transformer.resblocks.1.attn.in_proj_bias"
    with pytest.raises(ValueError, match=rf"    {key}: got \(143,\) in torch.float32"):
        read_weights({**joint, key: joint[key][:-1]})


def test_a_file_of_something_else_says_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"it holds no model in a format that is known; its first keys are a, b, c$"):
        read_weights({key: torch.ones(1) for key in "abcd"})
