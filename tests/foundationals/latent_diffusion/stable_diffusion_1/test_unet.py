"""The U-Net of Stable Diffusion 1.5: its layout and its parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import unet as module
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import (
    CLIPLCrossAttention,
    DownBlocks,
    MiddleBlock,
    SD1UNet,
    TimestepEncoder,
    UpBlocks,
)


@pytest.mark.parametrize(
    ("name", "in_channels"), [("sd15_unet", 4), ("sd15_unet_inpainting", 9), ("sd15_unet_ic_light", 8)]
)
def test_the_keys_are_those_of_the_published_weights(layouts: dict[str, Any], name: str, in_channels: int) -> None:
    unet = SD1UNet(in_channels, device="meta")
    layouts[name].check_shapes(unet)
    assert len(unet.state_dict()) == 686


@pytest.mark.parametrize(("name", "in_channels"), [("sd15_unet", 4), ("sd15_unet_inpainting", 9)])
def test_the_tree_is_the_published_one(layouts: dict[str, Any], name: str, in_channels: int) -> None:
    layouts[name].check_tree(SD1UNet(in_channels, device="meta"))


def test_the_parts_can_be_built_alone() -> None:
    whole = SD1UNet(4, device="meta").state_dict()
    for part, prefix in (
        (DownBlocks(in_channels=4, device="meta"), "DownBlocks."),
        (MiddleBlock(device="meta"), "Sum.MiddleBlock."),
        (UpBlocks(device="meta"), "UpBlocks."),
        (TimestepEncoder(device="meta"), "TimestepEncoder."),
    ):
        inner = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
        # Alone, nothing tells them the timestep yet.
        expected = {
            key.replace("RangeAdapter2d.Conv2d", "Conv2d_1").replace("Chain.Conv2d.", "Chain.Conv2d_2."): value.shape
            for key, value in inner.items()
            if "RangeAdapter2d.Chain" not in key and "ResidualBlock" in key
        } | {key: value.shape for key, value in inner.items() if "ResidualBlock" not in key}
        assert {key: value.shape for key, value in part.state_dict().items()} == expected


def test_the_attention_is_that_of_clip_l() -> None:
    attention = CLIPLCrossAttention(320, device="meta")
    assert isinstance(attention, CrossAttentionBlock2d)
    assert (attention.context_embedding_dim, attention.context_key) == (768, "clip_text_embedding")
    assert (attention.num_attention_heads, attention.num_attention_layers, attention.use_bias) == (8, 1, False)
    assert attention.projection_type == "Conv2d"


def test_the_epsilons_are_the_published_ones() -> None:
    unet = SD1UNet(4, device="meta")
    for norm, parent in unet.walk(fl.GroupNorm):
        assert norm.eps == (1e-6 if isinstance(parent.parent, CrossAttentionBlock2d) else 1e-5)
    assert {norm.eps for norm in unet.layers(fl.LayerNorm)} == {1e-5}


def test_the_timestep_encoding_is_four_times_as_wide(make_small_sd1_unet: Callable[..., SD1UNet]) -> None:
    encoder = make_small_sd1_unet().layer("TimestepEncoder", TimestepEncoder)
    encoder.set_context("diffusion", {"timestep": torch.tensor([3, 4])})
    encoder.set_context("range_adapter", {"timestep_embedding": None})
    encoder(torch.zeros(1))
    assert encoder.use_context("range_adapter")["timestep_embedding"].shape == (2, 64)


@pytest.mark.parametrize("channels", [(16,), (16, 32), (16, 16, 32, 32, 64)], ids=str)
def test_there_may_be_other_numbers_of_resolutions(
    make_small_sd1_unet: Callable[..., SD1UNet], call: Callable[..., torch.Tensor], channels: tuple[int, ...]
) -> None:
    unet = make_small_sd1_unet(channels=channels)
    assert call(unet, torch.randn(1, 4, 9, 7)).shape == (1, 4, 9, 7)
    down, up = unet.layer("DownBlocks", fl.Chain), unet.layer("UpBlocks", fl.Chain)
    assert len(down) == len(up) == 3 * len(channels)
    assert len(list(unet.layers(CLIPLCrossAttention))) == 5 * (len(channels) - 1) + 1


def test_heads_divide_the_channels(make_small_sd1_unet: Callable[..., SD1UNet]) -> None:
    with pytest.raises(AssertionError, match="channels 16 must be divisible by num_attention_heads 3"):
        make_small_sd1_unet(num_attention_heads=3)


def test_the_module_exports_the_blocks_of_all_unets() -> None:
    assert {"ResidualAccumulator", "ResidualBlock", "ResidualConcatenator"} <= set(module.__all__)
