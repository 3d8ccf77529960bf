"""The image encoders: their layout, and their embeddings next to those of `transformers`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import refiners.fluxion.layers as fl
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.clip import CLIPImageEncoder, CLIPImageEncoderG, CLIPImageEncoderH
from refiners.foundationals.clip.image_encoder import ClassToken, PatchEncoder, TransformerLayer, ViTEmbeddings

SIZES = {
    "image_size": 28,
    "embedding_dim": 32,
    "output_dim": 24,
    "patch_size": 7,
    "num_layers": 3,
    "num_attention_heads": 4,
    "feedforward_dim": 48,
}


def counterpart(**options: Any) -> CLIPVisionModelWithProjection:
    """The same sizes, in `transformers`."""
    config = {
        "image_size": 28,
        "hidden_size": 32,
        "projection_dim": 24,
        "patch_size": 7,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "gelu",
    }
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{**config, **options})).eval()


@pytest.mark.parametrize(
    "name,kind,keys",
    [
        ("clip_image_base", CLIPImageEncoder, 200),
        ("clip_image_h", CLIPImageEncoderH, 520),
        ("clip_image_g", CLIPImageEncoderG, 776),
    ],
)
def test_the_layout(layouts: dict[str, Any], name: str, kind: type[CLIPImageEncoder], keys: int) -> None:
    encoder = kind(device="meta")
    assert len(encoder.state_dict()) == keys
    layouts[name].check(encoder)


def test_the_layout_of_grid_features(layouts: dict[str, Any]) -> None:
    encoder = CLIPImageEncoderH(device="meta")
    removed = [type(encoder.pop()).__name__ for _ in range(3)]
    assert removed == ["Linear", "LayerNorm", "Lambda"]
    layers = encoder.layer(-1, fl.Chain)
    assert len(layers) == 32
    layers.pop()
    layouts["clip_image_h_grid"].check(encoder)
    assert encoder(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 257, 1280)


@pytest.mark.parametrize("options", [{}, {"layer_norm_eps": 0.5}, {"image_size": 30}], ids=str)
@torch.no_grad()
def test_embeddings_are_those_of_transformers(
    randomize: Any, copy_from_transformers: Any, error: Any, options: dict[str, Any]
) -> None:
    reference = counterpart(**options)
    randomize(reference)
    encoder = CLIPImageEncoder(**{**SIZES, **options})
    copy_from_transformers(reference, encoder)
    x = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    expected = reference(x, output_hidden_states=True)
    assert error(encoder(x), expected.image_embeds) < 1e-5
    grid = encoder.structural_copy()
    for _ in range(3):
        grid.pop()
    grid.layer(-1, fl.Chain).pop()
    assert error(grid(x), expected.hidden_states[-2]) < 1e-5
    assert len(encoder.layer("Chain", fl.Chain)) == 3, "the original keeps its layers"


def test_the_class_token_is_the_same_for_each_image() -> None:
    token = ClassToken(6)
    assert list(token.state_dict()) == ["Parameter.weight"] and token.Parameter.weight.shape == (1, 6)
    y = token(torch.zeros(3, 9))
    assert y.shape == (3, 1, 6) and torch.equal(y, token.Parameter.weight.expand(3, 1, 6))


def test_each_patch_is_embedded_by_itself() -> None:
    encoder = PatchEncoder(2, 5, patch_size=4)
    x = torch.randn(3, 2, 9, 12)
    y = encoder(x)
    assert y.shape == (3, 2, 3, 5)
    weight, bias = encoder.Conv2d.weight.flatten(1), encoder.Conv2d.bias
    assert_close(y[1, 0, 2], weight @ x[1, :, 0:4, 8:12].flatten() + bias)
    assert list(PatchEncoder(2, 5, use_bias=False).state_dict()) == ["Conv2d.weight"]
    assert (encoder.in_channels, encoder.out_channels, encoder.patch_size, encoder.use_bias) == (2, 5, 4, True)
    assert PatchEncoder(2, 5).patch_size == 16


def test_embeddings_begin_with_the_class_token() -> None:
    embeddings = ViTEmbeddings(image_size=8, embedding_dim=6, patch_size=4)
    x = torch.randn(2, 3, 8, 8)
    y = embeddings(x)
    assert y.shape == (2, 5, 6)
    positions = embeddings.state_dict()["Residual.PositionalEncoder.Embedding.weight"]
    token = embeddings.state_dict()["Concatenate.ClassToken.Parameter.weight"]
    patches = embeddings.ensure_find(PatchEncoder)(x)
    assert_close(y[:, 0], (token + positions[:1]).expand(2, 6))
    assert_close(y[:, 3], patches[:, 1, 0] + positions[3])


def test_a_layer_sees_the_whole_sequence() -> None:
    layer = TransformerLayer(8, 12, num_attention_heads=2)
    x = torch.randn(1, 4, 8)
    changed = x.clone()
    changed[:, -1] += 1
    assert (layer(x) - layer(changed)).abs().amax(dim=-1).min() > 0
    defaults = TransformerLayer(device="meta")
    assert (defaults.embedding_dim, defaults.feedforward_dim, defaults.num_attention_heads) == (768, 3072, 12)


def test_arguments_are_attributes() -> None:
    encoder = CLIPImageEncoder(**SIZES, layer_norm_eps=1e-3)
    assert {name: getattr(encoder, name) for name in SIZES} == SIZES
    assert {norm.eps for norm in encoder.layers(fl.LayerNorm)} == {1e-3}
    assert {gelu.approximation.name for gelu in encoder.layers(fl.GeLU)} == {"NONE"}
    with pytest.raises(AssertionError, match="embedding_dim 32 must be divisible by num_heads 5"):
        CLIPImageEncoder(**{**SIZES, "num_attention_heads": 5})


def test_an_image_of_another_size_is_an_error() -> None:
    encoder = CLIPImageEncoder(**SIZES)
    for height, width in ((35, 35), (28, 35), (21, 21)):
        with pytest.raises(Exception, match="invalid for input of size"):
            encoder(torch.randn(1, 3, height, width))


def test_a_meta_encoder_is_loaded(tmp_path: Path, randomize: Any) -> None:
    source = CLIPImageEncoder(**SIZES)
    randomize(source)
    save_to_safetensors(tmp_path / "encoder.safetensors", source.state_dict())
    loaded = CLIPImageEncoder(**SIZES, device="meta").load_from_safetensors(tmp_path / "encoder.safetensors")
    x = torch.randn(1, 3, 28, 28)
    assert torch.equal(loaded(x), source(x))


@torch.no_grad()
def test_dtypes(randomize: Any, error: Any) -> None:
    encoder = CLIPImageEncoder(**SIZES)
    randomize(encoder)
    x = torch.randn(2, 3, 28, 28)
    expected = encoder(x)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        converted = CLIPImageEncoder(**SIZES, dtype=dtype)
        converted.load_state_dict(encoder.state_dict())
        y = converted(x.to(dtype))
        assert y.dtype == dtype and error(y.float(), expected) < tolerance


def test_gradients_reach_every_weight(randomize: Any) -> None:
    encoder = CLIPImageEncoder(**SIZES)
    randomize(encoder)
    encoder(torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())


def test_images_are_encoded_in_one_graph() -> None:
    encoder = CLIPImageEncoder(**{**SIZES, "num_layers": 1})
    torch.compiler.reset()
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(torch.compile(encoder, fullgraph=True, backend="eager")(x), encoder(x))
