"""The conversions that are more than a map of names: ELLA, Control-LoRA, the text encoders of Stable Diffusion XL."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Size, Tensor

from refiners.conversion import clip_text_sdxl, controllora_sdxl, ella
from refiners.conversion.models.clip_text_sdxl import DoubleTextEncoderConversion
from refiners.conversion.utils import Hub
from refiners.fluxion.utils import load_from_safetensors

Layouts = Callable[[str], dict[str, Size]]


def ella_state(layers: int = 6, dim: int = 4) -> dict[str, Tensor]:
    shapes = {
        "time_embedding.linear_1": (dim, 2),
        "time_embedding.linear_2": (dim, dim),
        "connector.proj_in": (dim, 6),
        "connector.time_aware_linear": (dim, dim),
    }
    state: dict[str, Tensor] = {"connector.latents": torch.randn(3, dim), "other.weight": torch.ones(1)}
    for i in range(layers):
        block = f"connector.perceiver_blocks.{i}"
        shapes |= {f"{block}.{norm}.linear": (2 * dim, dim) for norm in ("ln_1", "ln_2", "ln_ff")}
        shapes |= {f"{block}.attn.out_proj": (dim, dim)}
        shapes |= {f"{block}.mlp.c_fc": (4 * dim, dim), f"{block}.mlp.c_proj": (dim, 4 * dim)}
        state[f"{block}.attn.in_proj_weight"] = torch.randn(3 * dim, dim)
        state[f"{block}.attn.in_proj_bias"] = torch.randn(3 * dim)
    for name, (rows, columns) in shapes.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(rows, columns), torch.randn(rows)
    return state


def test_ella_gets_the_keys_of_the_published_weights(layout_of: Layouts) -> None:
    translated = ella.sd15_t5xl.translate(ella_state())
    assert set(translated) == set(layout_of("ella_sd15_t5xl"))


def test_ella_splits_queries_keys_and_values_and_swaps_its_norms() -> None:
    state = ella_state(layers=2)
    translated = ella.sd15_t5xl.translate(state)
    block, layer = "connector.perceiver_blocks.1", "PerceiverResampler.Transformer.TransformerLayer_2"
    parts = [
        translated[f"{layer}.Residual_1.PerceiverAttention.Attention.Distribute.Linear_{i}.weight"] for i in (1, 2, 3)
    ]
    assert torch.equal(torch.cat(parts), state[f"{block}.attn.in_proj_weight"])
    for ours, theirs in (
        ("Residual_1.PerceiverAttention.Distribute.AdaLayerNorm_1.Parallel.Chain.Linear", "ln_2.linear"),
        ("Residual_1.PerceiverAttention.Distribute.AdaLayerNorm_2.Parallel.Chain.Linear", "ln_1.linear"),
        ("Residual_2.AdaLayerNorm.Parallel.Chain.Linear", "ln_ff.linear"),
        ("Residual_2.FeedForward.Linear_2", "mlp.c_proj"),
        ("Residual_1.PerceiverAttention.Attention.Linear", "attn.out_proj"),
    ):
        assert translated[f"{layer}.{ours}.bias"] is state[f"{block}.{theirs}.bias"]
    assert translated["PerceiverResampler.Residual.Linear.weight"] is state["connector.time_aware_linear.weight"]


def test_control_loras_get_the_keys_of_the_published_weights(
    layout_of: Layouts, key_map_of: Callable[[str], dict[str, str]]
) -> None:
    layout, keys = layout_of("sdxl_control_lora_published"), key_map_of("sdxl_control_lora.from_original")
    state: dict[str, Tensor] = {"input_blocks.1.0.in_layers.0.weight": torch.ones(1), "lora_controlnet": torch.ones(1)}
    for source, target in keys.items():
        for kind in ("up", "down", "weight", "bias"):
            if f"{target}.{kind}" in layout:
                state[f"{source}.{kind}"] = torch.ones(1)
            elif kind == "bias" and target.startswith("ControlLora."):
                state[f"{source}.{kind}"] = torch.ones(1)  # of the base model: it is not changed
    translated = controllora_sdxl.canny.translate(state)
    assert set(translated) == set(layout)
    assert translated["ZeroConvolution_10.Conv2d.bias"] is state["middle_block_out.0.bias"]


def test_the_text_encoders_of_sdxl_are_converted_by_their_names(
    layout_of: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = clip_text_sdxl.diffusers_recipe.key_map
    layout = layout_of("sdxl_double_text_encoder")
    texts: dict[str, dict[str, Tensor]] = {"text_encoder": {}, "text_encoder_2": {}}
    for i, (source, target) in enumerate(keys.items()):
        folder, _, name = source.partition("/")
        for kind in ("weight", "bias"):
            if f"{target}.{kind}" in layout:
                texts[folder][f"{name}.{kind}"] = torch.full((2,), float(i))
    texts["text_encoder"]["text_model.final_layer_norm.weight"] = torch.ones(2)  # not used
    for folder, state in texts.items():
        (tmp_path / "repository" / folder).mkdir(parents=True)
        safetensors.torch.save_file(state, tmp_path / "repository" / folder / "model.safetensors")
    asked: list[Any] = []

    def snapshot_download(repo_id: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, [p for p in allow_patterns if re.search("safetensors", p)]))
        return str(tmp_path / "repository")

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setattr(clip_text_sdxl, "optional", lambda name: fake)
    monkeypatch.setenv("REFINERS_HUB_PATH", str(tmp_path / "hub"))
    monkeypatch.setattr(Hub, "check_remote_hash", lambda self: True)
    conversion = DoubleTextEncoderConversion("owner/name", Hub("us", "model.safetensors"), revision="abc")
    conversion.convert()
    assert asked == [("owner/name", "abc", ["text_encoder/*.safetensors", "text_encoder_2/*.safetensors"])]
    converted = load_from_safetensors(conversion.converted.local_path)
    assert set(converted) == set(layout)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float16}
    places = {target: float(i) for i, target in enumerate(keys.values())}
    assert all(tensor[0].item() == places[key.rpartition(".")[0]] for key, tensor in converted.items())
