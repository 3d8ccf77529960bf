"""Encoders in their full size next to those of `transformers`, with random weights."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from refiners.foundationals.clip import (
    CLIPImageEncoder,
    CLIPImageEncoderG,
    CLIPImageEncoderH,
    CLIPTextEncoder,
    CLIPTextEncoderG,
    CLIPTextEncoderH,
    CLIPTextEncoderL,
)

pytestmark = pytest.mark.parity


def make(kind: type[nn.Module], config: Any, randomize: Any) -> Any:
    """Build a model of `transformers` and draw its weights once."""
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu").eval()
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(buffer.shape[-1]))
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    randomize(model)
    return model


@pytest.mark.parametrize(
    "kind,width,layers,heads,activation",
    [
        (CLIPTextEncoderL, 768, 12, 12, "quick_gelu"),
        (CLIPTextEncoderH, 1024, 23, 16, "gelu"),
        (CLIPTextEncoderG, 1280, 32, 20, "gelu"),
    ],
)
@torch.no_grad()
def test_text_encoders(
    randomize: Any,
    copy_from_transformers: Any,
    compare: Any,
    kind: type[CLIPTextEncoder],
    width: int,
    layers: int,
    heads: int,
    activation: str,
) -> None:
    config = CLIPTextConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_act=activation,
    )
    reference = make(CLIPTextModel, config, randomize)
    encoder = kind(device="meta")
    copy_from_transformers(reference, encoder)
    prompts = ["a photograph of an astronaut riding a horse, 8k", "", "masterpiece, " * 60]
    expected = reference(encoder.tokenizer(prompts), output_hidden_states=True)
    compare(kind.__name__, encoder(prompts), expected.last_hidden_state)
    compare(f"{kind.__name__}, before the last layer", encoder[:-2](prompts), expected.hidden_states[-2])


@pytest.mark.parametrize(
    "kind,width,inner,layers,heads,patch,output",
    [
        (CLIPImageEncoder, 768, 3072, 12, 12, 32, 512),
        (CLIPImageEncoderH, 1280, 5120, 32, 16, 14, 1024),
        (CLIPImageEncoderG, 1664, 8192, 48, 16, 14, 1280),
    ],
)
@torch.no_grad()
def test_image_encoders(
    randomize: Any,
    copy_from_transformers: Any,
    compare: Any,
    kind: type[CLIPImageEncoder],
    width: int,
    inner: int,
    layers: int,
    heads: int,
    patch: int,
    output: int,
) -> None:
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        projection_dim=output,
        hidden_act="gelu",
    )
    reference = make(CLIPVisionModelWithProjection, config, randomize)
    encoder = kind(device="meta")
    copy_from_transformers(reference, encoder)
    x = torch.randn(1, 3, 224, 224)
    compare(kind.__name__, encoder(x), reference(x).image_embeds)
