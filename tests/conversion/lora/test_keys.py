"""Keys are split into the name of a layer and what a tensor is for, however a trainer writes them."""

import pytest

from refiners.conversion.lora.keys import split_keys

KEYS = [
    ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "lora_unet_mid_block_attentions_0_proj_in", "down"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "lora_te_text_model_encoder_layers_0_mlp_fc1", "up"),
    ("lora_unet_conv_in.lora_mid.weight", "lora_unet_conv_in", "mid"),
    ("lora_unet_conv_in.alpha", "lora_unet_conv_in", "alpha"),
    ("lora_unet_conv_in.scalar", "lora_unet_conv_in", "scalar"),
    ("unet.mid.to_q.lora_A.weight", "unet.mid.to_q", "down"),
    ("unet.mid.to_q.lora_B.default_0.weight", "unet.mid.to_q", "up"),
    ("unet.mid.to_q.lora.down.weight", "unet.mid.to_q", "down"),
    ("mid.attn1.processor.to_out_lora.up.weight", "mid.attn1.processor.to_out", "up"),
    ("text_encoder.q_proj.lora_linear_layer.up.weight", "text_encoder.q_proj", "up"),
    ("mid.to_q.lora.alpha", "mid.to_q", "alpha"),
    ("mid.to_q_lora.alpha", "mid.to_q", "alpha"),
    ("SD1UNet.Chain.Distribute.1.Linear.down.weight", "SD1UNet.Chain.Distribute.1.Linear", "down"),
    ("a_b.dora_scale", "a_b", "dora_scale"),
    ("a.lora_magnitude_vector", "a", "magnitude"),
    ("a.lora_magnitude_vector.default.weight", "a", "magnitude"),
    ("a_b.hada_w2_a", "a_b", "hada_w2_a"),
    ("a_b.lokr_w1", "a_b", "lokr_w1"),
    ("a_b.lokr_w2_b.weight", "a_b", "lokr_w2_b"),
    ("a_b.oft_blocks", "a_b", "oft"),
    ("a_b.diff_b", "a_b", "diff_b"),
    ("a_b.w_norm", "a_b", "w_norm"),
    ("a.ia3_l", "a", "ia3_l"),
    ("a.lora_embedding_A", "a", "lora_embedding"),
    ("a.lora_B.bias", "a", "lora_bias"),
    ("a_b.bm.weight", "a_b", "glora"),
    ("bundle_emb.word.clip_l", "bundle_emb.word", "embedding"),
]


@pytest.mark.parametrize(("key", "layer", "role"), KEYS)
def test_a_key_names_a_layer_and_a_role(key: str, layer: str, role: str) -> None:
    (entry,), rest = split_keys([key])
    assert (entry.name, entry.keys, rest) == (layer, {role: key}, [])


@pytest.mark.parametrize("key", ["unet.conv_in.weight", "down.weight", "alpha", "", "a.lora_C.weight"])
def test_other_keys_are_left_over(key: str) -> None:
    assert split_keys([key]) == ([], [key])


def test_the_tensors_of_a_layer_come_together() -> None:
    keys = ["b.alpha", "a.lora_up.weight", "b.lora_down.weight", "a.lora_A.weight", "a.lora_B.weight", "x"]
    entries, rest = split_keys(keys)
    assert [(entry.name, entry.keys) for entry in entries] == [
        ("b", {"alpha": "b.alpha", "down": "b.lora_down.weight"}),
        ("a", {"up": "a.lora_up.weight", "down": "a.lora_A.weight", "up_2": "a.lora_B.weight"}),
    ]
    assert rest == ["x"]


def test_a_mere_weight_is_of_ia3_beside_its_other_tensor_only() -> None:
    entries, rest = split_keys(["a.weight", "a.on_input", "b.weight"])
    assert [entry.keys for entry in entries] == [{"on_input": "a.on_input", "ia3_w": "a.weight"}]
    assert rest == ["b.weight"]
