"""A LoRA file in another format holds the same numbers, and does the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from refiners.conversion.lora import inspect_lora
from refiners.conversion.lora.tools import convert_lora
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

FORMATS = ("kohya", "diffusers", "refiners")
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"

Write = Callable[..., Path]
Run = Callable[..., Tensor]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back_nothing_changes(format: Any, write: Write, run: Run, tmp_path: Path) -> None:
    source, there, back = write("a.safetensors"), tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    written = convert_lora(source, there, format=format)
    assert len(written.layers) == 102 and written.left_out == {} and "rank 2" in str(written)
    assert inspect_lora(there).format.startswith(format)
    convert_lora(there, back, format="kohya", metadata={"author": "me"})
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert metadata_of(back) == {"format": "pt", "modelspec.title": "a.safetensors", "author": "me"}
    assert torch.equal(run({there: 0.7}), run({source: 0.7}))


def test_numbers_of_16_bits_stay_as_they_are(write: Write, tmp_path: Path) -> None:
    half = {key: value.bfloat16() for key, value in load_file(write("a.safetensors")).items()}
    save_to_safetensors(tmp_path / "half.safetensors", half)
    convert_lora(tmp_path / "half.safetensors", tmp_path / "b.safetensors", format="diffusers")
    found = load_file(tmp_path / "b.safetensors")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(found[f"{name}.lora_A.weight"], half[f"{LAYER}.lora_down.weight"])
    assert torch.equal(found[f"{name}.lora_B.weight"], half[f"{LAYER}.lora_up.weight"])
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize("pattern", [r"attn1.to_[qv]", r"attn2.to_k|ff.net.0", r"conv2|conv_shortcut", r"."], ids=str)
def test_our_own_keys_name_one_layer_each(pattern: str, write: Write, run: Run, tmp_path: Path) -> None:
    source, ours = write("a.safetensors", pattern), tmp_path / "ours.safetensors"
    convert_lora(source, ours, format="refiners")
    assert inspect_lora(ours).plan.is_whole and inspect_lora(ours).family == "sd1"
    assert torch.equal(run({ours: 1.0}), run({source: 1.0}))


def test_our_own_keys_are_those_of_the_manager(manager: SDLoraManager, write: Write, tmp_path: Path) -> None:
    manager.load("style", write("a.safetensors", r"."))
    manager.save("style", tmp_path / "saved.safetensors", format="refiners")
    weights, saved = manager.get_lora_weights("style"), load_file(tmp_path / "saved.safetensors")
    assert saved.keys() - {key for key in saved if key.endswith(".alpha")} == weights.keys()
    assert all(torch.equal(saved[key], weights[key]) for key in weights)


def rs_lora(tmp_path: Path, alpha: dict[str, Tensor]) -> Path:
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 6, "use_rslora": true}')
    name = "base_model.model.unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.randn(4, 32), f"{name}.lora_B.weight": torch.randn(32, 4)}
    tensors |= {f"{name}.{key}": value for key, value in alpha.items()}
    save_to_safetensors(tmp_path / "peft" / "adapter_model.safetensors", tensors)
    return tmp_path / "peft"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("alpha", [{}, {"alpha": torch.tensor(6.0)}], ids=["in the settings", "a tensor"])
def test_the_root_of_the_rank_becomes_a_number(alpha: dict[str, Tensor], format: Any, run: Run, tmp_path: Path) -> None:
    source, out = rs_lora(tmp_path, alpha), tmp_path / "a.safetensors"
    convert_lora(source, out, format=format)
    (update,) = inspect_lora(out).plan.updates
    assert update.alpha == 12 and update.scale == 3  # 6 / √4 = 12 / 4
    assert torch.equal(run({out: 1.0}), run({source: 1.0}))


def dora(shape: tuple[int, ...]) -> dict[str, Tensor]:
    pair = {f"{LAYER}.lora_down.weight": torch.randn(2, 32), f"{LAYER}.lora_up.weight": torch.randn(32, 2)}
    return pair | {f"{LAYER}.dora_scale": torch.rand(shape) + 1, f"{LAYER}.alpha": torch.tensor(1.0)}


def test_dora_by_rows_is_for_two_formats(run: Run, tmp_path: Path) -> None:
    source, theirs, back = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    save_to_safetensors(source, dora((32, 1)))
    convert_lora(source, theirs, format="diffusers")
    convert_lora(theirs, back, format="kohya")
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(run({theirs: 1.0}), run({source: 1.0}))


KINDS: dict[str, tuple[dict[str, Tensor], str]] = {
    "LoHa": ({f"{LAYER}.hada_w{i}_{j}": torch.ones(32, 32) for i in "12" for j in "ab"}, "LoHa (1)"),
    "core": (
        {
            f"{CONV}.lora_down.weight": torch.ones(2, 32, 1, 1),
            f"{CONV}.lora_up.weight": torch.ones(32, 2, 1, 1),
            f"{CONV}.lora_mid.weight": torch.ones(2, 2, 3, 3),
        },
        "LoCon (1)",
    ),
    "columns": (dora((1, 32)), "DoRA (1)"),
    "difference": ({f"{LAYER}.diff": torch.ones(32, 32)}, "full difference (1)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_a_format_has_no_tensors_for(kind: str, write: Write, tmp_path: Path) -> None:
    tensors, named = KINDS[kind]
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_to_safetensors(source, load_file(write("x.safetensors", r"attn2")) | tensors)
    message = re.escape(f"the format 'diffusers' has no tensors for {named}; such as unet.down_blocks.0")
    with pytest.raises(ValueError, match=message):
        convert_lora(source, out, format="diffusers")
    assert not out.exists()
    written = convert_lora(source, out, format="diffusers", partial=True)
    assert len(written.left_out) == 1 and len(written.layers) == 64
    convert_lora(source, tmp_path / "c.safetensors", format="kohya")
    after = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(after[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("format", FORMATS)
def test_layers_that_ours_do_without(format: Any, tmp_path: Path) -> None:
    layers = [f"lora_te1_text_model_encoder_layers_{index}_mlp_fc1" for index in (10, 11)]
    layers += ["lora_unet_mid_block_attentions_0_transformer_blocks_9_attn1_to_q"]
    tensors = {f"{layer}.lora_down.weight": torch.randn(2, 8) for layer in layers}
    tensors |= {f"{layer}.lora_up.weight": torch.randn(8, 2) for layer in layers}
    tensors |= {f"{layer}.alpha": torch.tensor(2.0) for layer in layers}
    source, there, back = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_to_safetensors(source, tensors)
    written = convert_lora(source, there, format=format)
    convert_lora(there, back, format="kohya")
    after = load_file(back)
    kept = {key for key in tensors if format != "refiners" or layers[1] not in key}
    assert after.keys() == kept and all(torch.equal(after[key], tensors[key]) for key in kept)
    assert list(written.left_out) == ([layers[1]] if format == "refiners" else [])


def test_mistakes(model: StableDiffusion_1, write: Write, tmp_path: Path) -> None:
    source, out = write("a.safetensors"), tmp_path / "b.safetensors"
    middle = write("middle.safetensors", r"mid_block.*proj_in")
    save_to_safetensors(
        tmp_path / "wrong.safetensors", {**load_file(source), f"{LAYER}.oft_blocks": torch.ones(2, 2, 2)}
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": "comfy"}, "format must be one of kohya, diffusers, refiners, peft, got 'comfy'"),
        ({"destination": tmp_path / "b.pt"}, "destination must end in .safetensors"),
        ({"destination": tmp_path / "no" / "b.safetensors"}, "destination must be a file in a folder that exists"),
        ({"destination": source}, "destination must be another file than what is read"),
        ({"source": middle}, "has names of layers of several models: give model or checkpoint"),
        ({"source": tmp_path / "wrong.safetensors"}, "1 of 102 updates are not understood, nothing was written"),
        ({"model": model, "checkpoint": source}, "model and checkpoint say the same"),
    ]
    for changed, message in cases:
        arguments: dict[str, Any] = {"source": source, "destination": out, "format": "kohya", **changed}
        with pytest.raises(ValueError, match=message):
            convert_lora(**arguments)
    with pytest.raises(TypeError, match="metadata must map texts to texts, got 3 for 'a'"):
        convert_lora(source, out, format="kohya", metadata={"a": 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="model must be a LatentDiffusionModel, got int"):
        convert_lora(source, out, format="kohya", model=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError):
        convert_lora(tmp_path / "none.safetensors", out, format="kohya")
    convert_lora(middle, out, format="kohya", model=model)
    out.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "middle.safetensors", "wrong.safetensors"}
