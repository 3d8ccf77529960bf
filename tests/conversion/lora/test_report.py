"""What is said of a file before anything is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import refiners
import refiners.fluxion.layers as fl
from refiners.conversion.lora.settings import LoraSettings
from refiners.fluxion.adapters.lora.files import save_loras
from refiners.fluxion.adapters.lora.training import add_trainable_loras
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors
from refiners.foundationals.latent_diffusion import LatentDiffusionModel
from refiners.inspect import main

inspect_lora = refiners.inspect_lora
LayersOf = Callable[[str], dict[str, str]]


def pair(name: str, down: tuple[int, ...], up: tuple[int, ...], alpha: float | None = 4.0) -> dict[str, Tensor]:
    tensors = {f"{name}.lora_down.weight": torch.zeros(down), f"{name}.lora_up.weight": torch.zeros(up)}
    return tensors if alpha is None else tensors | {f"{name}.alpha": torch.tensor(alpha)}


MIDDLE = "mid_block_attentions_0_transformer_blocks_0_attn2_to_k"  # of all models


@pytest.mark.parametrize(("dim", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (999, None)])
def test_sizes_tell_the_model_where_names_do_not(dim: int, family: str | None) -> None:
    report = inspect_lora(pair(f"lora_unet_{MIDDLE}", (8, dim), (1280, 8)))
    assert report.family == family and report.plan.is_whole and not report.is_checked


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in", f"lora_unet_{MIDDLE}"], "sd1"),
        (["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"], "sdxl"),
        (["lora_te2_text_model_encoder_layers_30_mlp_fc1"], "sdxl"),
        (["lora_unet_mid_block_attentions_0_transformer_blocks_7_ff_net_2"], "sdxl"),
    ],
)
def test_names_tell_the_model(names: list[str], family: str) -> None:
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= pair(name, (8, 64), (64, 8))
    assert inspect_lora(tensors).family == family


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_conv_in.lora_down.weight", "kohya with names of diffusers"),
        ("lora_unet_input_blocks_0_0.lora_down.weight", "kohya with names of ldm"),
        ("lora_unet.conv_in.lora_down.weight", "OneTrainer with names of diffusers"),
        ("unet.conv_in.lora_A.weight", "diffusers with names of diffusers"),
        ("unet.conv_in.lora.down.weight", "old diffusers with names of diffusers"),
        ("base_model.model.conv_in.lora_A.weight", "PEFT with names of diffusers"),
        ("diffusion_model.input_blocks.0.0.lora_A.weight", "ComfyUI or ai-toolkit with names of ldm"),
        ("SD1UNet.DownBlocks.Chain_1.1.Conv2d.down.weight", "refiners with names of refiners"),
        ("what.lora_down.weight", "kohya"),
    ],
)
def test_formats(key: str, expected: str) -> None:
    assert inspect_lora({key: torch.zeros(2, 4, 3, 3)}).format == expected


CONV = "lora_unet_conv_in"
KINDS = [
    ("LoRA", pair("lora_unet_mid_block_attentions_0_proj_in", (2, 8), (8, 2)), True),
    ("LoCon", pair(CONV, (2, 4, 3, 3), (320, 2, 1, 1)), True),
    ("DoRA", pair(CONV, (2, 4), (320, 2)) | {f"{CONV}.dora_scale": torch.ones(320, 1)}, True),
    ("LoHa", {f"{CONV}.hada_w{i}_{m}": torch.ones(2, 2) for i in (1, 2) for m in "ab"}, True),
    ("LoKr", {f"{CONV}.lokr_w1": torch.ones(2, 2), f"{CONV}.lokr_w2": torch.ones(2, 2)}, True),
    ("full difference", {f"{CONV}.diff": torch.ones(2, 2)}, True),
    ("norm difference", {"lora_unet_conv_norm_out.w_norm": torch.ones(2)}, True),
    ("IA3", {f"{CONV}.weight": torch.ones(2), f"{CONV}.on_input": torch.ones(())}, True),
    ("IA3", {"unet.conv_in.ia3_l": torch.ones(2, 1)}, True),
    ("OFT", {f"{CONV}.oft_blocks": torch.ones(2, 2)}, False),
    ("embedding of a new word", {"bundle_emb.word.clip_l": torch.ones(2, 2)}, False),
]


@pytest.mark.parametrize(("kind", "tensors", "is_supported"), KINDS)
def test_kinds_are_recognised(kind: str, tensors: dict[str, Tensor], is_supported: bool) -> None:
    report = inspect_lora(tensors)
    (update,) = report.plan.updates
    assert update.kind == kind and report.plan.is_whole == is_supported
    assert kind in str(report)
    if not is_supported:
        assert update.reason == f"{kind} is not supported yet" and update.reason in str(report)


def test_layers_that_a_model_does_without_are_left_out() -> None:
    tensors = pair("lora_te2_text_model_encoder_layers_30_mlp_fc1", (2, 8), (8, 2))
    last = pair("lora_te1_text_model_encoder_layers_11_mlp_fc1", (2, 8), (8, 2))
    report = inspect_lora(tensors | last)
    assert report.plan.is_whole and [each.name for each in report.plan.of_status("left out")] == [
        "lora_te1_text_model_encoder_layers_11_mlp_fc1"
    ]
    assert "left out, 1: the model does without this layer, such as lora_te1" in str(report)
    projection = pair("lora_te_text_projection", (2, 8), (8, 2))
    report = inspect_lora(projection | pair("lora_unet_down_blocks_0_attentions_0_proj_in", (2, 8), (8, 2)))
    assert report.family == "sd1" and report.plan.is_whole and len(report.plan.of_status("left out")) == 1


def test_the_report_is_a_table_and_json(layers_of: LayersOf, tmp_path: Path, model_of: Any) -> None:
    tensors: dict[str, Tensor] = {}
    unet = model_of("sdxl").unet
    for name, path in layers_of("sdxl_unet.from_ldm").items():
        if "CrossAttentionBlock" in path and ".Linear" in path:
            out, width = unet.get_submodule(path).weight.shape
            key = "lora_unet_" + name.replace(".", "_")
            tensors |= pair(key, (2, width), (out, 2), alpha=1.0)
    tensors |= pair("lora_unet_nowhere", (2, 2), (2, 2)) | {"other": torch.zeros(1)}
    path = tmp_path / "style.safetensors"
    save_to_safetensors(path, tensors, {"ss_base_model_version": "sdxl_base_v1-0", "ss_secret": "no"})
    report = inspect_lora(path)
    assert str(report).splitlines() == [
        f"{path}: LoRA for Stable Diffusion XL (sdxl), written by kohya with names of ldm",
        "  network       kind      rank   alpha  layers",
        "  unet          LoRA         2       1     700",
        "     280  unet, self-attention",
        "     280  unet, cross-attention",
        "     140  unet, feed-forward",
        "cannot be attached:",
        "  1: no layer has this name",
        "    lora_unet_nowhere",
        "  1: no tensor of an update that is known",
        "    other",
        "says ss_base_model_version: sdxl_base_v1-0",
    ]
    found = json.loads(json.dumps(report.to_json()))
    assert found["table"] == [
        {
            **{"part": "unet", "kind": "LoRA", "rank": 2, "alpha": 1.0},
            **{"scale": 0.5, "is_rank_stabilized": False, "count": 700},
        }
    ]
    assert found["left_over"] == ["other"] and len(found["updates"]) == 701 and found["is_whole"] is False
    checked = inspect_lora(path, model_of("sdxl"))
    assert checked.is_checked and checked.family == "sdxl" and len(checked.plan.of_status("fits")) == 700
    wrong = inspect_lora(path, model_of("sd1"))
    assert wrong.family == "sdxl" and wrong.model_family == "sd1" and wrong.plan.of_status("unknown")


def test_what_is_no_lora() -> None:
    with pytest.raises(ValueError, match="the state dict holds no LoRA.*its first keys are conv.weight"):
        inspect_lora({"conv.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="model and checkpoint say the same: give one of them"):
        inspect_lora({}, model=object(), checkpoint="x")  # pyright: ignore[reportArgumentType]


def test_arguments_of_wrong_types_are_named(model_of: Callable[[str], LatentDiffusionModel]) -> None:
    calls: list[tuple[dict[str, Any], str]] = [
        ({"model": model_of("sd1").unet}, "model must be a LatentDiffusionModel, got SD1UNet$"),
        ({"model": "sdxl"}, "model must be a LatentDiffusionModel, got str: checkpoint= takes the path of one"),
        ({"checkpoint": model_of("sd1")}, "checkpoint must be a path, got StableDiffusion_1: model= takes it"),
        ({"file": 3}, "file must be a path, or tensors by their keys, got int"),
    ]
    for changed, message in calls:
        with pytest.raises(TypeError, match=message):
            inspect_lora(**{"file": {}, **changed})


def test_only_multipliers_are_read(tmp_path: Path) -> None:
    """A file whose matrices cannot be read is inspected as any other."""
    path = tmp_path / "style.safetensors"
    save_to_safetensors(path, pair("lora_unet_conv_in", (2, 4, 3, 3), (320, 2, 1, 1)))
    reads: list[str] = []

    class Watched(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            reads.append(key)
            return super().__getitem__(key)

    inspect_lora(Watched(pair("lora_unet_conv_in", (2, 4, 3, 3), (320, 2, 1, 1))))
    assert set(reads) == {"lora_unet_conv_in.alpha"}
    assert inspect_lora(path).plan.updates[0].alpha == 4.0


def test_settings_of_peft(tmp_path: Path) -> None:
    config = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"to_q": 4}, "use_rslora": False}
    metadata = {f"unet.{key}": value for key, value in config.items()} | {"text_encoder.use_rslora": True}
    settings = LoraSettings.of_file(tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    assert settings.alpha("unet.a.to_q") == 4.0 and settings.alpha("unet.a.to_k") == 16.0
    assert settings.alpha("text_encoder.a") is None and settings.alpha("a.to_q") is None
    assert settings.divisor("unet.a.to_q", 9) == 9 and settings.divisor("text_encoder.a", 9) == 3
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    of_folder = LoraSettings.of_file(tmp_path, {})
    assert of_folder.alpha("base_model.model.a.to_q") == 4.0
    assert LoraSettings.of_file(tmp_path / "adapter_model.safetensors", {}).configs == of_folder.configs
    assert LoraSettings.of_file(tmp_path / "other.safetensors", {}).configs == {}
    for text, message in (("{", "is no JSON"), ("[]", "must hold an object, got list")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            LoraSettings.of_file(tmp_path, {})


def test_numbered_names_of_ours(model_of: Callable[[str], LatentDiffusionModel]) -> None:
    block = "SD1UNet.DownBlocks.Chain_2.CLIPLCrossAttention.Chain_2.CrossAttentionBlock.Residual_2.Attention.Distribute"
    sizes = {1: 320, 2: 768, 3: 768}
    both: dict[str, Tensor] = {}
    for number, width in sizes.items():
        both |= pair(f"{block}.{number}.Linear", (2, width), (320, 2))
    plan = inspect_lora(both, model_of("sd1")).plan
    assert [each.path.rpartition(".")[2] for each in plan.updates] == ["Linear_1", "Linear_2", "Linear_3"]
    first = inspect_lora(pair(f"{block}.1.Linear", (2, 320), (320, 2)), model_of("sd1")).plan
    assert [each.path.rpartition(".")[2] for each in first.updates] == ["Linear_1"]
    second = inspect_lora(pair(f"{block}.1.Linear", (2, 768), (320, 2)), model_of("sd1")).plan
    assert re.search("may mean several layers: unet .*Linear_2, unet .*Linear_3", second.updates[0].reason)
    assert inspect_lora(pair(f"{block}.2.Linear", (2, 320), (320, 2)), model_of("sd1")).plan.of_status("unknown")


QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def peft(root: str, rank: int = 4) -> dict[str, Tensor]:
    name = f"{root}.{QUERY}"
    return {f"{name}.lora_A.weight": torch.zeros(rank, 320), f"{name}.lora_B.weight": torch.zeros(320, rank)}


@pytest.mark.parametrize("root", ["base_model.model", "unet"])
def test_an_alpha_that_is_elsewhere_is_told(root: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_to_safetensors(path, peft(root))
    report = inspect_lora(path)
    (note,) = report.notes()
    assert note.startswith("alpha is not known: ") and "the rank is taken for it" in note
    assert "PEFT keeps it in adapter_config.json" in note
    assert f"\nnote: {note}\n" in str(report) and report.to_json()["notes"] == [note]
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    assert inspect_lora(path).notes() == []
    assert inspect_lora(pair(f"lora_unet_{MIDDLE}", (8, 768), (1280, 8), alpha=None)).notes() == []


def test_multipliers_that_are_not_alpha_over_rank_are_shown(tmp_path: Path) -> None:
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_to_safetensors(path, peft("base_model.model"))
    config.write_text('{"r": 4, "lora_alpha": 8}')
    assert "alpha  layers" in str(inspect_lora(path))
    config.write_text('{"r": 4, "lora_alpha": 8, "use_rslora": true}')
    report = inspect_lora(path)
    assert str(report).splitlines()[1:] == [
        "  network       kind      rank   alpha  multiplier  layers",
        "  unet          LoRA         4       8           4       1",
        "       1  unet, self-attention",
        "note: rank-stabilized: the multiplier is alpha / sqrt(rank)",
        "everything fits by its name; shapes were not compared with a model",
    ]
    (row,) = json.loads(json.dumps(report.to_json()))["table"]
    assert row["scale"] == 4 and row["is_rank_stabilized"] is True
    name = f"lora_unet_{MIDDLE}"
    (other,) = inspect_lora(pair(name, (8, 768), (1280, 8)) | {f"{name}.scalar": torch.tensor(3.0)}).table()
    assert other.scale == 1.5 and not other.is_rank_stabilized and not other.is_plain


def test_files_of_any_chain_are_for_load_loras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = fl.Chain(fl.Linear(8, 6), fl.Chain(fl.Conv2d(4, 6, 3), fl.Linear(6, 8)))
    add_trainable_loras("style", chain, rank=2, alpha=3)
    path = tmp_path / "chain.safetensors"
    save_loras(chain, "style", path)
    report = inspect_lora(path)
    assert str(report).splitlines() == [
        f"{path}: LoCon, LoRA for a chain, written by save_loras of refiners",
        "  network       kind      rank   alpha  layers",
        "  -             LoCon        2       3       1",
        "  -             LoRA         2       3       2",
        "load_loras attaches it to the chain that it was saved of; it was not compared with one",
    ]
    assert report.is_of_a_chain and report.to_json()["is_whole"] is True and main([str(path)]) == 0
    capsys.readouterr()
    save_to_safetensors(path, load_from_safetensors(path) | {"Linear.lora_up.weight": torch.zeros(6, 3)})
    assert main([str(path)]) == 1 and "cannot be attached" in capsys.readouterr().out
    assert not inspect_lora(pair(f"lora_unet_{MIDDLE}", (8, 768), (1280, 8))).is_of_a_chain


def test_files_of_a_unet_are_for_both(model_of: Callable[[str], LatentDiffusionModel]) -> None:
    report = inspect_lora(pair("DownBlocks.Chain_1.Conv2d", (2, 4, 3, 3), (320, 2, 1, 1)), model_of("sd1"))
    assert report.is_of_a_chain and report.is_whole and report.format == "save_loras of refiners"
    assert str(report).endswith("\neverything fits")
