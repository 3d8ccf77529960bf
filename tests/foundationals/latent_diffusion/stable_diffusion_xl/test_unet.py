"""The U-Net of Stable Diffusion XL: its layout, its parts and its own conditions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import (
    DownBlocks,
    MiddleBlock,
    OutputBlock,
    SDXLCrossAttention,
    SDXLUNet,
    TextTimeEmbedding,
    TimestepEncoder,
    UpBlocks,
)

MakeUNet = Callable[..., SDXLUNet]


def test_the_layout_is_the_published_one(layouts: dict[str, Any]) -> None:
    unet = SDXLUNet(4, device="meta")
    layouts["sdxl_unet"].check_shapes(unet)
    layouts["sdxl_unet"].check_tree(unet)
    assert len(unet.state_dict()) == 1680


def test_other_inputs_change_the_first_convolution_alone(layouts: dict[str, Any]) -> None:
    shapes = {key: tuple(weight.shape) for key, weight in SDXLUNet(9, device="meta").state_dict().items()}
    changed = {key for key, shape in layouts["sdxl_unet"].shapes.items() if shapes[key] != shape}
    assert changed == {"DownBlocks.Chain_1.Conv2d.weight"}
    assert shapes["DownBlocks.Chain_1.Conv2d.weight"] == (320, 9, 3, 3)


def test_the_parts_have_the_published_sizes_by_default() -> None:
    parts = [DownBlocks(4, device="meta"), MiddleBlock(device="meta"), UpBlocks(device="meta")]
    parts += [OutputBlock(device="meta"), TimestepEncoder(device="meta")]
    total = sum(weight.numel() for part in parts for weight in part.parameters())
    unet = SDXLUNet(4, device="meta")
    adapters = sum(weight.numel() for name, weight in unet.named_parameters() if "RangeAdapter2d.Chain" in name)
    assert total + adapters == sum(weight.numel() for weight in unet.parameters()) == 2_567_463_684


def test_the_attention_is_that_of_the_double_text_encoder() -> None:
    attention = SDXLCrossAttention(640, device="meta")
    assert (attention.context_embedding_dim, attention.context_key) == (2048, "clip_text_embedding")
    assert (attention.num_attention_heads, attention.num_attention_layers, attention.use_bias) == (10, 1, False)
    assert attention.projection_type == "Linear"


def test_the_epsilons_are_the_published_ones() -> None:
    unet = SDXLUNet(4, device="meta")
    for norm, parent in unet.walk(fl.GroupNorm):
        assert norm.eps == (1e-6 if isinstance(parent.parent, CrossAttentionBlock2d) else 1e-5)


def sinusoids(numbers: Tensor, dim: int) -> Tensor:
    angles = numbers.double()[..., None] * 10000.0 ** (-torch.arange(dim // 2).double() / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def test_text_and_time_ids_are_encoded_together(randomize: Callable[..., None]) -> None:
    encoder = TextTimeEmbedding(8, pooled_text_embedding_dim=5, time_ids_embedding_dim=4).double()
    assert (encoder.timestep_embedding_dim, encoder.time_ids_embedding_dim) == (8, 4)
    assert encoder.text_time_embedding_dim == 5 + 6 * 4
    randomize(encoder)
    time_ids, pooled = torch.tensor([[1, 2, 3, 4, 5, 6], [70, 0, 0, 9, 9, 1]]), torch.randn(2, 5).double()
    encoder.set_context("diffusion", {"time_ids": time_ids, "pooled_text_embedding": pooled})
    w = encoder.state_dict()
    h = torch.cat([pooled, sinusoids(time_ids, 4).reshape(2, 24)], dim=1)
    h = silu(linear(h, w["Linear_1.weight"], w["Linear_1.bias"]))
    expected = linear(h, w["Linear_2.weight"], w["Linear_2.bias"])
    assert_close(encoder(), expected, rtol=1e-5, atol=1e-5)  # sinusoids are in float32


def test_the_timestep_and_the_others_are_added(make_small_sdxl_unet: MakeUNet, conditions: Callable[..., Any]) -> None:
    unet = make_small_sdxl_unet()
    for key, value in conditions(unet, 2).items():
        getattr(unet, f"set_{key}")(value)
    encoder = unet.layer("TimestepEncoder", TimestepEncoder)
    both = [branch() for branch in encoder.layer("Sum", fl.Sum)]
    encoder(torch.zeros(1))
    assert torch.equal(unet.use_context("range_adapter")["timestep_embedding"], both[0] + both[1])


def test_the_defaults_of_the_encoding() -> None:
    embedding = TextTimeEmbedding(device="meta")
    sizes = (embedding.timestep_embedding_dim, embedding.time_ids_embedding_dim, embedding.text_time_embedding_dim)
    assert sizes == (1280, 256, 2816)


def test_conditions_are_set_in_any_order(make_small_sdxl_unet: MakeUNet, conditions: Callable[..., Any]) -> None:
    unet, x = make_small_sdxl_unet(), torch.randn(2, 4, 5, 6)
    given = list(conditions(unet, 2).items())
    outputs: list[Tensor] = []
    for order in (given, given[::-1]):
        for key, value in order:
            getattr(unet, f"set_{key}")(value)
        outputs.append(unet(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("time_ids", torch.zeros(2, 5), r"time_ids must be \(batch, 6\), got \(2, 5\)"),
        ("time_ids", torch.zeros(6), r"time_ids must be \(batch, 6\), got \(6,\)"),
        ("pooled_text_embedding", torch.zeros(2, 21), r"must be \(batch, 20\), got \(2, 21\)"),
        ("pooled_text_embedding", torch.zeros(2, 1, 20), r"must be \(batch, 20\), got \(2, 1, 20\)"),
    ],
)
def test_a_setter_refuses_other_shapes_and_sets_nothing(
    make_small_sdxl_unet: MakeUNet, key: str, value: Tensor, message: str
) -> None:
    unet = make_small_sdxl_unet()
    with pytest.raises(ValueError, match=rf"set_{key}: .*{message}"):
        getattr(unet, f"set_{key}")(value)
    assert unet.use_context("diffusion")[key] is None


def test_one_row_of_time_ids_for_two_samples_is_named(make_small_sdxl_unet: MakeUNet, call: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=r"the input is a batch of 2, but set_time_ids got \(1, 6\)"):
        call(make_small_sdxl_unet(), torch.randn(2, 4, 5, 6), time_ids=torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_attention_layers": (1, 2)}, r"a number for each of the 3 resolutions, .* got \(1, 2\)"),
        ({"num_attention_layers": (1, 2, 0)}, r"the last at least 1, got \(1, 2, 0\)"),
        ({"num_attention_layers": (-1, 2, 1)}, r"got \(-1, 2, 1\)"),
        ({"head_dim": 24}, r"head_dim must be positive and divide the channels \[32, 64\], got 24"),
        ({"head_dim": 0}, "head_dim must be positive"),
    ],
)
def test_attention_that_does_not_fit_is_named(
    make_small_sdxl_unet: MakeUNet, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_small_sdxl_unet(**wrong)


def test_each_resolution_has_its_number_of_layers(make_small_sdxl_unet: MakeUNet) -> None:
    unet = make_small_sdxl_unet(num_attention_layers=(1, 0, 3))
    counts = {(attention.channels, attention.num_attention_layers) for attention in unet.layers(SDXLCrossAttention)}
    assert counts == {(16, 1), (64, 3)}
    assert {attention.num_attention_heads for attention in unet.layers(SDXLCrossAttention)} == {2, 8}
