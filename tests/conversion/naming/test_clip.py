"""The names of text and image encoders in the files of transformers, OpenCLIP and Stable Diffusion."""

from typing import Any

import pytest
import torch
from torch import Tensor

from refiners.conversion.checkpoint import StateDict
from refiners.conversion.detection import find_component, find_components
from refiners.conversion.formats import formats_of
from refiners.conversion.loading import read_weights, to_diffusers
from refiners.conversion.naming.clip import DoubleTextLayout


def test_the_name_of_the_text_model_may_be_absent(tiny: Any) -> None:
    state = tiny.text_1.state_dict()
    ours = read_weights(state)
    full = {f"text_model.{key}": tensor for key, tensor in state.items()}
    full["text_model.embeddings.position_ids"] = torch.arange(77)
    again = read_weights(full)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert to_diffusers(ours).keys() == full.keys() - {"text_model.embeddings.position_ids"}


def test_open_clip_joins_queries_keys_and_values_and_projects_from_the_left(tiny: Any, to_open_clip: Any) -> None:
    state = tiny.text_2.state_dict()
    joint = to_open_clip(state)
    joint["logit_scale"], joint["attn_mask"] = torch.ones(()), torch.zeros(77, 77)
    ours, expected = read_weights(joint, "clip_text"), read_weights(state)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) and ours[key].is_contiguous() for key in ours)

    # The same, computed by torch's own attention, whose joint projection this is.
    attention = torch.nn.MultiheadAttention(48, 4, batch_first=True)
    attention.load_state_dict({k.rpartition("attn.")[2]: v for k, v in joint.items() if "resblocks.0.attn." in k})
    x = torch.randn(1, 5, 48)
    layer = "TransformerLayer_1.Residual_1.SelfAttention"
    q, k, v = (
        torch.nn.functional.linear(
            x, ours[f"{layer}.Distribute.Linear_{i}.weight"], ours[f"{layer}.Distribute.Linear_{i}.bias"]
        )
        .view(1, 5, 4, 12)
        .transpose(1, 2)
        for i in (1, 2, 3)
    )
    heads = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, 48)
    y = torch.nn.functional.linear(heads, ours[f"{layer}.Linear.weight"], ours[f"{layer}.Linear.bias"])
    torch.testing.assert_close(y, attention(x, x, x)[0])


def test_an_image_encoder_of_open_clip(tiny: Any) -> None:
    state = tiny.image.state_dict()
    names = {each.library: each for each in formats_of("clip_image")}
    layout = names["transformers"].layout({key: tensor.shape for key, tensor in state.items()})
    joint: dict[str, Tensor] = {}
    for a, b in zip(names["transformers"].names(layout), names["open_clip"].names(layout), strict=True):
        for kind in ("weight", "bias"):
            if a.key(kind) in state:
                tensor = state[a.key(kind)].T if b.transposed else state[a.key(kind)]
                before = [joint[b.key(kind)]] if b.part else []
                joint[b.key(kind)] = torch.cat([*before, tensor]) if b.part is not None else tensor
    assert joint["visual.transformer.resblocks.1.attn.in_proj_weight"].shape == (96, 32)
    assert joint["visual.proj"].shape == (32, 24)
    ours, expected = read_weights(joint), read_weights(state)
    assert all(torch.equal(ours[key], expected[key]) for key in expected) and len(ours) == len(expected)


def test_the_two_text_encoders_of_sdxl_become_one(tiny: Any, to_open_clip: Any) -> None:
    folders = tiny.double_text_state()
    found = find_component(StateDict(folders))
    assert found.layout == DoubleTextLayout(layers=2, layers_2=2, dim=32, dim_2=48)
    ours = found.state_dict()
    single = {f"conditioner.embedders.0.transformer.text_model.{k}": v for k, v in tiny.text_1.state_dict().items()}
    second = to_open_clip(tiny.text_2.state_dict())
    single |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    single["conditioner.embedders.1.model.logit_scale"] = torch.ones(())
    single["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    single["model.diffusion_model.other"] = torch.ones(1)
    again = read_weights(single, "double_text_encoder")
    assert again.keys() == ours.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    last = (
        "Parallel.TextEncoderWithPooling.Parallel.Chain.CLIPTextEncoderG.TransformerLayer.Residual_1.LayerNorm.weight"
    )
    assert torch.equal(ours[last], folders["text_encoder_2/text_model.encoder.layers.1.layer_norm1.weight"])
    back = to_diffusers(ours)
    assert all(torch.equal(tensor, folders[key.replace("er/text_model.", "er/")]) for key, tensor in back.items())
    unused = {key for key in folders if "er/encoder.layers.2" in key or "er/final_layer_norm" in key}
    assert len(back) == len(folders) - len(unused)


def test_a_file_of_both_encoders_of_clip_holds_both(tiny: Any) -> None:
    texts = dict(tiny.text_2.state_dict())
    both = {**texts, **tiny.image.state_dict(), "logit_scale": torch.ones(())}
    assert [found.component for found in find_components(StateDict(both))] == ["clip_text", "clip_image"]
    with pytest.raises(ValueError, match=r"must hold one model; it holds clip_text \(transformers\), clip_image"):
        read_weights(both)
    assert read_weights(both, "clip_image").keys() == read_weights(tiny.image.state_dict()).keys()
    assert read_weights(both, "clip_text").keys() == read_weights(texts).keys()
