"""The two text encoders of Stable Diffusion XL, compared with those of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion import DoubleTextEncoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import TextEncoderWithPooling

PROMPTS = ["a cute cat", "", "two dogs and a very long list of " + "words " * 100]


def make(pad: int = 49407, dim: int = 64) -> CLIPTextEncoder:
    tokenizer = CLIPTokenizer(pad_token_id=pad)
    return CLIPTextEncoder(
        embedding_dim=dim, num_layers=3, num_attention_heads=4, feedforward_dim=64, tokenizer=tokenizer
    )


@pytest.fixture
def double() -> DoubleTextEncoder:
    return DoubleTextEncoder(make(dim=32), make(pad=0)).requires_grad_(False)


def last_but_one(encoder: CLIPTextEncoder, text: list[str]) -> Tensor:
    return encoder[:-2](text)


def test_features_and_pooled_features() -> None:
    first, second, projection = make(dim=32), make(pad=0), fl.Linear(64, 64, bias=False)
    double = DoubleTextEncoder(first, second, projection).requires_grad_(False)
    embedding, pooled = double(PROMPTS)
    expected = torch.cat((last_but_one(first, PROMPTS), last_but_one(second, PROMPTS)), dim=-1)
    torch.testing.assert_close(embedding, expected)
    ends = [4, 1, 76]  # after the start of the text and its tokens
    torch.testing.assert_close(pooled, projection(second(PROMPTS)[range(3), ends]))
    assert embedding.shape == (3, 77, 96) and pooled.shape == (3, 64)


def test_one_by_one_and_in_one_batch(double: DoubleTextEncoder) -> None:
    together = double(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        for whole, one in zip(together, double(prompt)):
            torch.testing.assert_close(whole[i : i + 1], one, atol=1e-6, rtol=1e-5)


def test_the_first_end_of_text_counts() -> None:
    """Also where the padding is the same token."""
    encoder, projection = make(pad=49407), fl.Linear(64, 64, bias=False)
    double = DoubleTextEncoder(make(dim=32), encoder, projection).requires_grad_(False)
    torch.testing.assert_close(double("a cute cat")[1], projection(encoder("a cute cat")[:, 4]))


def test_a_failed_call_leaves_nothing_behind(double: DoubleTextEncoder) -> None:
    expected = double("a cute cat")
    hook = double.ensure_find(fl.LayerNorm).register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(Exception, match="division by zero"):
        double(["a", "b"])
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(double("a cute cat"), expected))


def test_a_copy_shares_the_weights(double: DoubleTextEncoder) -> None:
    copy = double.structural_copy()
    assert repr(copy) == repr(double)
    shared = dict(double.named_parameters())
    assert all(parameter is shared[name] for name, parameter in copy.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(copy("a cute cat"), double("a cute cat")))
    pooling, original = copy.ensure_find(TextEncoderWithPooling), double.ensure_find(TextEncoderWithPooling)
    assert pooling is not original and pooling.target is not original.target
    pooling.eject()
    assert copy.find(TextEncoderWithPooling) is None and double.find(TextEncoderWithPooling) is original
    assert copy.layer(("Parallel", 1), CLIPTextEncoder) is pooling.target


def test_pooling_is_ejected() -> None:
    encoder = make(pad=0)
    parent = fl.Chain(encoder)
    before = repr(parent)
    adapter = TextEncoderWithPooling(encoder).inject()
    assert parent.layer(0, TextEncoderWithPooling) is adapter and adapter.tokenizer.pad_token_id == 0
    adapter.eject()
    assert parent.layer(0, CLIPTextEncoder) is encoder and repr(parent) == before


def test_matches_transformers(double: DoubleTextEncoder) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=64,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    theirs = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    encoder, projection = make(pad=0), fl.Linear(64, 64, bias=False)
    state = list(theirs.state_dict().items())
    order = dict(state)
    values = {}
    for key in encoder.state_dict():
        parts = key.split(".")
        if parts[0] == "Sum":
            kind = "token" if "TokenEncoder" in key else "position"
            values[key] = order[f"text_model.embeddings.{kind}_embedding.weight"]
        elif parts[0] == "LayerNorm":
            values[key] = order[f"text_model.final_layer_norm.{parts[-1]}"]
        else:
            layer = int(parts[0].split("_")[1]) - 1
            name = {
                "Residual_1.LayerNorm": "layer_norm1",
                "Residual_2.LayerNorm": "layer_norm2",
                "Residual_1.SelfAttention.Distribute.Linear_1": "self_attn.q_proj",
                "Residual_1.SelfAttention.Distribute.Linear_2": "self_attn.k_proj",
                "Residual_1.SelfAttention.Distribute.Linear_3": "self_attn.v_proj",
                "Residual_1.SelfAttention.Linear": "self_attn.out_proj",
                "Residual_2.FeedForward.Linear_1": "mlp.fc1",
                "Residual_2.FeedForward.Linear_2": "mlp.fc2",
            }[".".join(parts[1:-1])]
            values[key] = order[f"text_model.encoder.layers.{layer}.{name}.{parts[-1]}"]
    encoder.load_state_dict(values)
    projection.load_state_dict({"weight": order["text_projection.weight"]})
    ours = DoubleTextEncoder(make(dim=32), encoder, projection).requires_grad_(False)
    embedding, pooled = ours(PROMPTS)
    expected = theirs(encoder.ensure_find(CLIPTokenizer)(PROMPTS), output_hidden_states=True)
    for ours_, theirs_ in ((embedding[..., 32:], expected.hidden_states[-2]), (pooled, expected.text_embeds)):
        assert (ours_ - theirs_).norm() / theirs_.norm() < 1e-5
