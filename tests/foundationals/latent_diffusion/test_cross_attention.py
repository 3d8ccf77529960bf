"""Attention from an image to itself and to a context."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, group_norm, layer_norm, linear
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.cross_attention import (
    CrossAttentionBlock,
    CrossAttentionBlock2d,
    StatefulFlatten,
)


def attend(w: dict[str, Tensor], prefix: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    q, k, v = (
        linear(source, w[f"{prefix}.Distribute.Linear_{i}.weight"], w.get(f"{prefix}.Distribute.Linear_{i}.bias"))
        for i, source in ((1, x), (2, context), (3, context))
    )
    dim = q.shape[-1] // heads
    parts = [slice(dim * head, dim * (head + 1)) for head in range(heads)]
    results = [
        torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / dim**0.5, dim=-1) @ v[..., part] for part in parts
    ]
    return linear(torch.cat(results, dim=-1), w[f"{prefix}.Linear.weight"], w[f"{prefix}.Linear.bias"])


def reference(w: dict[str, Tensor], x: Tensor, context: Tensor, heads: int) -> Tensor:
    """The block, plainly, from its weights."""

    def norm(i: int, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"Residual_{i}.LayerNorm.weight"], w[f"Residual_{i}.LayerNorm.bias"])

    normed = norm(1, x)
    x = x + attend(w, "Residual_1.SelfAttention", normed, normed, heads)
    x = x + attend(w, "Residual_2.Attention", norm(2, x), context, heads)
    values, gates = linear(norm(3, x), w["Residual_3.Linear_1.weight"], w["Residual_3.Linear_1.bias"]).chunk(2, dim=-1)
    return x + linear(values * gelu(gates), w["Residual_3.Linear_2.weight"], w["Residual_3.Linear_2.bias"])


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_block_attends_to_itself_then_to_the_context(use_bias: bool, randomize: Callable[..., None]) -> None:
    block = CrossAttentionBlock(8, 6, context_key="text", num_heads=2, use_bias=use_bias).double()
    randomize(block)
    x, context = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 6).double()
    block.set_context("cross_attention_block", {"text": context})
    assert_close(block(x), reference(block.state_dict(), x, context, heads=2))
    assert block.context == "cross_attention_block"
    biases = [key for key in block.state_dict() if "Distribute" in key and key.endswith("bias")]
    assert len(biases) == (6 if use_bias else 0)


@pytest.mark.parametrize("use_linear_projection", [True, False])
def test_the_image_is_a_sequence_of_pixels(use_linear_projection: bool, randomize: Callable[..., None]) -> None:
    block = CrossAttentionBlock2d(
        8, 6, "text", num_attention_heads=2, num_groups=4, use_linear_projection=use_linear_projection
    ).double()
    randomize(block)
    x, context = torch.randn(2, 8, 3, 5).double(), torch.randn(2, 3, 6).double()
    block.set_context("cross_attention_block", {"text": context})
    w = block.state_dict()
    inner = {key.removeprefix("Chain_2.CrossAttentionBlock."): value for key, value in w.items()}
    kind = block.projection_type
    assert kind == ("Linear" if use_linear_projection else "Conv2d")

    def project(chain: str, pixels: Tensor) -> Tensor:  # with a kernel of one pixel, both are the same matrix
        return linear(pixels, w[f"{chain}.{kind}.weight"].reshape(8, 8), w[f"{chain}.{kind}.bias"])

    h = group_norm(x, 4, w["Chain_1.GroupNorm.weight"], w["Chain_1.GroupNorm.bias"], eps=1e-6)
    pixels = project("Chain_1", h.permute(0, 2, 3, 1).reshape(2, 15, 8))
    pixels = project("Chain_3", reference(inner, pixels, context, heads=2))
    assert_close(block(x), x + pixels.reshape(2, 3, 5, 8).permute(0, 3, 1, 2))


def test_layers_follow_each_other() -> None:
    block = CrossAttentionBlock2d(8, 6, "text", num_attention_layers=3, num_groups=4)
    keys = list(block.layer("Chain_2", fl.Chain)._modules)
    assert keys == ["CrossAttentionBlock_1", "CrossAttentionBlock_2", "CrossAttentionBlock_3"]


def test_attributes_of_the_block() -> None:
    block = CrossAttentionBlock2d(8, 6, "text", num_attention_heads=2, num_groups=4, use_bias=False)
    assert (block.channels, block.in_channels, block.out_channels, block.context_embedding_dim) == (8, 8, 8, 6)
    assert (block.num_attention_heads, block.num_attention_layers, block.num_groups, block.use_bias) == (2, 1, 4, False)
    assert (block.context_key, block.use_linear_projection) == ("text", False)


def test_heads_divide_the_channels() -> None:
    with pytest.raises(AssertionError, match="channels 8 must be divisible by num_attention_heads 3"):
        CrossAttentionBlock2d(8, 6, "text", num_attention_heads=3, num_groups=4)


class Stack(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"flatten": {"sizes": []}}


@pytest.mark.parametrize(
    ("dims", "sizes", "shape"),
    [
        ((2, -1), (4, 5), (2, 3, 20)),
        ((0, -1), (2, 3, 4, 5), (120,)),
        ((1, 2), (3, 4), (2, 12, 5)),
        ((0, -2), (2, 3, 4), (24, 5)),
    ],
)
def test_flattened_sizes_are_pushed(dims: tuple[int, int], sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    pushed: list[Any] = []
    peek = fl.UseContext("flatten", "sizes").compose(lambda stack: pushed.extend(stack))
    x = torch.randn(2, 3, 4, 5)
    flat = StatefulFlatten("flatten", "sizes", start_dim=dims[0], end_dim=dims[1])
    y = Stack(flat, fl.Parallel(fl.Identity(), fl.Passthrough(peek)), fl.GetArg(0))(x)
    assert y.shape == shape
    assert pushed == [sizes]


def test_nested_blocks_have_sizes_of_their_own() -> None:
    inner = CrossAttentionBlock2d(8, 6, "text", num_groups=4)
    outer = fl.Chain(CrossAttentionBlock2d(8, 6, "text", num_groups=4), inner)
    outer.set_context("cross_attention_block", {"text": torch.randn(1, 3, 6)})
    assert outer(torch.randn(1, 8, 3, 5)).shape == (1, 8, 3, 5)
    assert inner.use_context("flatten") == {"sizes": []}


@pytest.mark.parametrize("use_linear_projection", [True, False])
def test_pixels_that_lie_as_a_sequence_are_not_moved(use_linear_projection: bool, copies: Any) -> None:
    block = CrossAttentionBlock2d(8, 6, "text", num_groups=4, use_linear_projection=use_linear_projection)
    block.to(memory_format=torch.channels_last)
    block.set_context("cross_attention_block", {"text": torch.randn(2, 3, 6)})
    x = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last)
    with torch.no_grad(), copies:
        y = block(x)
    assert copies.found == []
    assert y.is_contiguous(memory_format=torch.channels_last)
    flat = Stack(StatefulFlatten("flatten", "sizes", start_dim=2), fl.Transpose(1, 2))(x)
    assert flat.data_ptr() == x.data_ptr() and flat.is_contiguous()


def test_a_block_can_be_pickled_and_copied() -> None:
    block = CrossAttentionBlock2d(8, 6, "text", num_groups=4)
    x, context = torch.randn(1, 8, 3, 5), {"text": torch.randn(1, 3, 6)}
    outputs: list[Tensor] = []
    for copy in (block, pickle.loads(pickle.dumps(block)), block.structural_copy()):
        copy.set_context("cross_attention_block", context)
        outputs.append(copy(x))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
