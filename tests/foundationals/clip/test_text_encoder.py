"""The text encoders: their layout, and their features next to those of `transformers`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import refiners.fluxion.layers as fl
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.clip import CLIPTextEncoder, CLIPTextEncoderG, CLIPTextEncoderH, CLIPTextEncoderL
from refiners.foundationals.clip.text_encoder import TokenEncoder, TransformerLayer
from refiners.foundationals.clip.tokenizer import CLIPTokenizer

SIZES = {"embedding_dim": 32, "num_layers": 3, "num_attention_heads": 4, "feedforward_dim": 48}
PROMPTS = ["a cute cat", "", "it's 64k, " * 40, "日本語 🐱"]


def make(**options: Any) -> CLIPTextEncoder:
    return CLIPTextEncoder(**{**SIZES, **options})


def counterpart(kind: type, **options: Any) -> Any:
    """The same sizes, in `transformers`."""
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "projection_dim": 24,
        "hidden_act": "gelu",
        "eos_token_id": 49407,
    }
    return kind(CLIPTextConfig(**{**config, **options})).eval()


@pytest.mark.parametrize(
    "name,kind,keys",
    [
        ("clip_text_l", CLIPTextEncoderL, 196),
        ("clip_text_h", CLIPTextEncoderH, 372),
        ("clip_text_g", CLIPTextEncoderG, 516),
    ],
)
def test_the_layout(layouts: dict[str, Any], name: str, kind: type[CLIPTextEncoder], keys: int) -> None:
    encoder = kind(device="meta")
    assert len(encoder.state_dict()) == keys
    layouts[name].check(encoder)
    assert all(weight.is_meta for weight in encoder.parameters())


@pytest.mark.parametrize("activation,quick", [("gelu", False), ("quick_gelu", True)])
@torch.no_grad()
def test_features_are_those_of_transformers(
    randomize: Any, copy_from_transformers: Any, error: Any, activation: str, quick: bool
) -> None:
    reference = counterpart(CLIPTextModel, hidden_act=activation)
    randomize(reference)
    encoder = make(use_quick_gelu=quick)
    copy_from_transformers(reference, encoder)
    ids = encoder.tokenizer(PROMPTS)
    expected = reference(ids, output_hidden_states=True)
    assert error(encoder(PROMPTS), expected.last_hidden_state) < 1e-5
    assert error(encoder[1:](ids), expected.last_hidden_state) < 1e-5
    assert error(encoder[:-2](PROMPTS), expected.hidden_states[-2]) < 1e-5
    other = make(use_quick_gelu=not quick)
    copy_from_transformers(reference, other)
    assert error(other(PROMPTS), expected.last_hidden_state) > 1e-4  # the activations can be told apart


@pytest.mark.parametrize("pad", [49407, 0])
@torch.no_grad()
def test_the_end_of_text_holds_the_pooled_features(
    randomize: Any, copy_from_transformers: Any, error: Any, pad: int
) -> None:
    reference = counterpart(CLIPTextModelWithProjection)
    randomize(reference)
    encoder = make(tokenizer=CLIPTokenizer(pad_token_id=pad))
    projected = encoder.structural_copy()
    projected.append(fl.Linear(32, 24, bias=False))
    copy_from_transformers(reference, projected)
    ids = encoder.tokenizer(PROMPTS)
    ends = (ids == 49407).int().argmax(dim=1)
    assert ends.tolist() == [4, 1, 76, 6]
    expected = reference(ids).text_embeds
    assert error(projected(PROMPTS)[torch.arange(4), ends], expected) < 1e-5


@torch.no_grad()
def test_the_epsilon_reaches_each_normalization(randomize: Any, copy_from_transformers: Any, error: Any) -> None:
    reference = counterpart(CLIPTextModel, layer_norm_eps=0.5)
    randomize(reference)
    encoder = make(layer_norm_eps=0.5)
    copy_from_transformers(reference, encoder)
    assert error(encoder(PROMPTS), reference(encoder.tokenizer(PROMPTS)).last_hidden_state) < 1e-5
    assert {norm.eps for norm in encoder.layers(fl.LayerNorm)} == {0.5}


@torch.no_grad()
def test_attention_is_causal(randomize: Any) -> None:
    encoder = make()
    randomize(encoder)
    one, other = encoder("a cat on a mat")[0], encoder("a cat in a hat")[0]
    assert torch.equal(one[:3], other[:3])
    assert (one[3:] - other[3:]).norm(dim=-1).min() > 1e-3


@torch.no_grad()
def test_a_batch_is_encoded_like_its_prompts(randomize: Any) -> None:
    encoder = make()
    randomize(encoder)
    together = encoder(PROMPTS)
    assert together.shape == (4, 77, 32)
    torch.testing.assert_close(together, torch.cat([encoder(prompt) for prompt in PROMPTS]), rtol=0, atol=1e-6)
    assert encoder([]).shape == (0, 77, 32)


def test_a_slice_is_a_copy_that_shares_the_weights() -> None:
    encoder = make()
    part = encoder[:-2]
    assert type(part) is CLIPTextEncoder and len(part) == len(encoder) - 2
    assert list(part._modules)[3:] == ["TransformerLayer_1", "TransformerLayer_2"]
    assert part.ensure_find(TokenEncoder).weight is encoder.ensure_find(TokenEncoder).weight
    assert list(encoder._modules)[3:] == ["TransformerLayer_1", "TransformerLayer_2", "TransformerLayer_3", "LayerNorm"]
    converter = part.layer("Converter", fl.Converter)
    assert converter.parent is part and encoder.layer("Converter", fl.Converter).parent is encoder


def test_arguments_are_attributes() -> None:
    tokenizer = CLIPTokenizer(sequence_length=16)
    encoder = make(max_sequence_length=16, tokenizer=tokenizer, use_quick_gelu=True, layer_norm_eps=1e-3)
    for name, value in {**SIZES, "max_sequence_length": 16, "use_quick_gelu": True, "layer_norm_eps": 1e-3}.items():
        assert getattr(encoder, name) == value
    assert encoder.vocabulary_size == 49408 and encoder.tokenizer is tokenizer is encoder[0]
    assert encoder("a cat").shape == (1, 16, 32)
    assert make(max_sequence_length=16).tokenizer.sequence_length == 16
    layer = encoder.layer("TransformerLayer_1", TransformerLayer)
    assert (layer.embedding_dim, layer.feedforward_dim, layer.num_attention_heads) == (32, 48, 4)
    table = encoder.ensure_find(TokenEncoder)
    assert (table.vocabulary_size, table.num_embeddings, table.embedding_dim) == (49408, 49408, 32)


def test_the_activation_of_each_layer() -> None:
    for quick, name in ((True, "SIGMOID"), (False, "NONE")):
        gelus = list(make(use_quick_gelu=quick).layers(fl.GeLU))
        assert [gelu.approximation.name for gelu in gelus] == [name] * 3
    assert {gelu.approximation.name for gelu in CLIPTextEncoderL("meta").layers(fl.GeLU)} == {"SIGMOID"}
    for kind in (CLIPTextEncoderH, CLIPTextEncoderG):
        assert {gelu.approximation.name for gelu in kind("meta").layers(fl.GeLU)} == {"NONE"}


def test_g_fills_up_with_zeros() -> None:
    assert CLIPTextEncoderG("meta").tokenizer("a cute cat")[0, 4:7].tolist() == [49407, 0, 0]
    assert CLIPTextEncoderL("meta").tokenizer("a cute cat")[0, 4:7].tolist() == [49407, 49407, 49407]


def test_wrong_arguments() -> None:
    with pytest.raises(AssertionError, match="embedding_dim 32 must be divisible by num_heads 5"):
        make(num_attention_heads=5)
    with pytest.raises(TypeError, match="tokenizer must be a CLIPTokenizer, got Identity"):
        make(tokenizer=fl.Identity())
    message = "tokenizer must give at most max_sequence_length 16 ids, got one that gives 77"
    with pytest.raises(ValueError, match=message):
        make(max_sequence_length=16, tokenizer=CLIPTokenizer())


def test_a_meta_encoder_is_loaded(tmp_path: Path, randomize: Any) -> None:
    source = make()
    randomize(source)
    save_to_safetensors(tmp_path / "encoder.safetensors", source.state_dict())
    from_file = make(device="meta").load_from_safetensors(tmp_path / "encoder.safetensors")
    assigned = make(device="meta")
    assigned.load_state_dict(source.state_dict(), assign=True)
    for encoder in (from_file, assigned):
        assert torch.equal(encoder("a cat"), source("a cat"))


@torch.no_grad()
def test_dtypes(randomize: Any, error: Callable[[Tensor, Tensor], float]) -> None:
    encoder = make()
    randomize(encoder)
    expected = encoder(PROMPTS)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        converted = make(dtype=dtype)
        converted.load_state_dict(encoder.state_dict())
        y = converted(PROMPTS)
        assert y.dtype == dtype and error(y.float(), expected) < tolerance


def test_copies_and_gradients(randomize: Any) -> None:
    encoder = make()
    randomize(encoder)
    clone = copy.deepcopy(encoder)
    encoder("a cat").square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())
    assert torch.equal(clone("a cat"), encoder("a cat")) and clone.ensure_find(TokenEncoder).weight.grad is None


def test_ids_are_encoded_in_one_graph(randomize: Any) -> None:
    encoder = make(num_layers=1)
    randomize(encoder)
    torch.compiler.reset()
    ids = encoder.tokenizer(["a cat", ""])
    compiled = torch.compile(encoder[1:], fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids), encoder(["a cat", ""]))
