"""A LoRA file made of two checkpoints gives back what was added to one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import make_xl, text_encoder
from torch import Tensor

from refiners.conversion import to_diffusers
from refiners.conversion.lora import inspect_lora
from refiners.conversion.lora.tools import extract_lora
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import SD1UNet, StableDiffusion_1

LINEAR = (
    "DownBlocks.Chain_2.CLIPLCrossAttention.Chain_2.CrossAttentionBlock.Residual_1.SelfAttention.Distribute.Linear_2"
)
CONV = "DownBlocks.Chain_2.ResidualBlock.Chain.Conv2d"
NORM = "DownBlocks.Chain_2.CLIPLCrossAttention.Chain_1.GroupNorm"
KEYS = {
    LINEAR: "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k",
    CONV: "lora_unet_down_blocks_0_resnets_0_conv2",
    NORM: "lora_unet_down_blocks_0_attentions_0_norm",
}

Run = Callable[..., Tensor]


@pytest.fixture(scope="module")
def state(model: StableDiffusion_1) -> dict[str, Tensor]:
    state = {key: value.clone() for key, value in model.unet.state_dict().items()}
    assert {f"{layer}.weight" for layer in KEYS} <= state.keys()
    return state


def low_rank(shape: torch.Size, rank: int) -> Tensor:
    down, up = torch.randn(rank, shape[1:].numel()), torch.randn(shape[0], rank)
    return (0.02 * up @ down).view(shape)


def tuned(state: dict[str, Tensor], *layers: str, rank: int = 3) -> dict[str, Tensor]:
    changes = {f"{layer}.weight": low_rank(state[f"{layer}.weight"].shape, rank) for layer in layers}
    return state | {key: state[key] + change for key, change in changes.items()}


def product(tensors: dict[str, Tensor], layer: str) -> Tensor:
    return tensors[f"{layer}.lora_up.weight"].flatten(1) @ tensors[f"{layer}.lora_down.weight"].flatten(1)


def write(path: Path, state: dict[str, Tensor]) -> Path:
    save_to_safetensors(path, {key: value.contiguous() for key, value in state.items()})
    return path


@pytest.mark.parametrize("is_theirs", [False, True], ids=["ours", "diffusers"])
def test_a_difference_of_low_rank_comes_back(
    is_theirs: bool, model: StableDiffusion_1, state: dict[str, Tensor], run: Run, tmp_path: Path
) -> None:
    changed = tuned(state, LINEAR, CONV)
    base = write(tmp_path / "base.safetensors", state)
    other = write(tmp_path / "tuned.safetensors", to_diffusers(changed) if is_theirs else changed)
    out, told = tmp_path / "lora.safetensors", list[tuple[int, int]]()
    written = extract_lora(base, other, out, rank=3, progress=lambda *each: told.append(each))
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)] and len(told) > 300
    assert sorted(each.kind for each in written.layers) == ["LoCon", "LoRA"] and written.left_out == {}
    assert all(each.kept == pytest.approx(1, abs=1e-9) for each in written.layers)
    after = load_file(out)
    assert {key.partition(".")[0] for key in after} == {KEYS[LINEAR], KEYS[CONV]}
    for layer in (LINEAR, CONV):
        expected = (changed[f"{layer}.weight"] - state[f"{layer}.weight"]).flatten(1)
        torch.testing.assert_close(product(after, KEYS[layer]), expected, rtol=1e-4, atol=1e-6)
    applied, none = run({out: 1.0}), run({})
    model.unet.load_state_dict(changed)
    expected = run({})
    model.unet.load_state_dict(state)
    assert (applied - expected).norm() <= 1e-4 * (expected - none).norm()
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert (said["ss_base_model_version"], said["ss_network_dim"], said["ss_network_alpha"]) == ("sd_v1", "3", "3")


def test_each_layer_is_the_nearest_by_rank_or_energy(state: dict[str, Tensor], tmp_path: Path) -> None:
    delta = {key: torch.randn_like(state[f"{key}.weight"]) for key in (LINEAR, CONV)}
    base = write(tmp_path / "base.safetensors", state)
    other = write(
        tmp_path / "b.safetensors", state | {f"{k}.weight": state[f"{k}.weight"] + d for k, d in delta.items()}
    )
    out = tmp_path / "lora.safetensors"
    extract_lora(base, other, out, rank=5)
    for layer, each in delta.items():
        values = torch.linalg.svdvals(each.flatten(1))
        error = (product(load_file(out), KEYS[layer]) - each.flatten(1)).norm().item()
        assert error == pytest.approx(values[5:].norm().item(), rel=1e-4)
    extract_lora(base, other, out, rank=12, energy=0.3)
    for layer, each in delta.items():
        squares = torch.linalg.svdvals(each.flatten(1)).square()
        enough = int((squares.cumsum(0) / squares.sum() < 0.3).sum()) + 1
        assert load_file(out)[f"{KEYS[layer]}.lora_down.weight"].shape[0] == min(enough, 12)


def test_what_rounding_made_is_no_difference(state: dict[str, Tensor], tmp_path: Path) -> None:
    changed = {key: value.half() for key, value in tuned(state, LINEAR).items()}
    base, other = write(tmp_path / "base.safetensors", state), write(tmp_path / "tuned.safetensors", changed)
    out = tmp_path / "lora.safetensors"
    written = extract_lora(base, other, out, rank=2)
    assert [each.name for each in written.layers] == ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"]
    dtypes = {key.rpartition(".lora_")[2]: value.dtype for key, value in load_file(out).items()}
    assert dtypes["down.weight"] == dtypes["up.weight"] == torch.float16
    extract_lora(base, other, out, rank=2, dtype=torch.bfloat16)
    assert load_file(out)[f"{KEYS[LINEAR]}.lora_down.weight"].dtype == torch.bfloat16


def test_norms_are_whole_on_request(state: dict[str, Tensor], run: Run, tmp_path: Path) -> None:
    more = {f"{NORM}.weight": torch.randn(32), f"{NORM}.bias": torch.randn(32), f"{CONV}.bias": torch.randn(32)}
    changed = tuned(state, LINEAR) | {key: state[key] + value for key, value in more.items()}
    base, other = write(tmp_path / "base.safetensors", state), write(tmp_path / "tuned.safetensors", changed)
    out = tmp_path / "lora.safetensors"
    written = extract_lora(base, other, out, rank=3)
    assert (
        sorted(written.left_out.values())
        == ["differences of biases"] + ["differences of norms: norms=True writes them"] * 2
    )
    assert "left out, 2: differences of norms" in str(written)
    written = extract_lora(base, other, out, rank=3, norms=True)
    assert list(written.left_out) == ["unet.down_blocks.0.resnets.0.conv2.bias"]
    after = load_file(out)
    torch.testing.assert_close(after[f"{KEYS[NORM]}.w_norm"], changed[f"{NORM}.weight"] - state[f"{NORM}.weight"])
    torch.testing.assert_close(after[f"{KEYS[NORM]}.b_norm"], changed[f"{NORM}.bias"] - state[f"{NORM}.bias"])
    assert not torch.equal(run({out: 1.0}), run({}))


def test_text_encoders_are_compared(tmp_path: Path) -> None:
    texts = make_xl().clip_text_encoder.state_dict()
    names = {"Parallel.CLIPTextEncoder.": "Parallel.CLIPTextEncoderL.", "CLIPTextEncoder.": "CLIPTextEncoderG."}
    for name, published in names.items():  # the classes of the published encoders, whose sizes are others
        texts = {key.replace(name, published): value for key, value in texts.items()}
    changed = [
        "Parallel.CLIPTextEncoderL.TransformerLayer_1.Residual_2.FeedForward.Linear_1.weight",
        "Parallel.TextEncoderWithPooling.Parallel.Chain.CLIPTextEncoderG.TransformerLayer"
        ".Residual_1.SelfAttention.Distribute.Linear_1.weight",
    ]
    base = write(tmp_path / "base.safetensors", texts)
    tuned = write(
        tmp_path / "tuned.safetensors", texts | {key: texts[key] + low_rank(texts[key].shape, 2) for key in changed}
    )
    out = tmp_path / "lora.safetensors"
    written = extract_lora(base, tuned, out, rank=2)
    assert {key.partition(".")[0] for key in load_file(out)} == {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_2_self_attn_q_proj",
    }
    assert all(each.kept == pytest.approx(1, abs=1e-9) for each in written.layers)
    assert inspect_lora(out, checkpoint=base).plan.is_whole


def test_a_network_of_one_checkpoint_alone_is_left_out(state: dict[str, Tensor], tmp_path: Path) -> None:
    texts = text_encoder(32).state_dict()
    key = "TransformerLayer_1.Residual_2.FeedForward.Linear_1.weight"
    parts = {"base/unet": state, "base/text_encoder": texts, "tuned/text_encoder": {**texts, key: texts[key] + 1}}
    for part, each in parts.items():
        (tmp_path / part).mkdir(parents=True)
        write(tmp_path / part / "model.safetensors", each)
    out = tmp_path / "lora.safetensors"
    written = extract_lora(tmp_path / "base", tmp_path / "tuned", out, rank=2, energy=0.99)
    assert written.left_out == {"unet": "unet is in one of the checkpoints alone"}
    assert [(each.name, each.rank) for each in written.layers] == [
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", 1)
    ]
    assert load_file(out).keys() == {
        f"lora_te_text_model_encoder_layers_0_mlp_fc1.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }


def test_mistakes(state: dict[str, Tensor], tmp_path: Path) -> None:
    base, out = write(tmp_path / "base.safetensors", state), tmp_path / "lora.safetensors"
    other = write(tmp_path / "tuned.safetensors", tuned(state, LINEAR))
    wide = write(
        tmp_path / "wide.safetensors", SD1UNet(9, channels=(32, 64, 64, 64), text_embedding_dim=32).state_dict()
    )
    text = write(tmp_path / "text.safetensors", text_encoder(32).state_dict())
    nan = write(
        tmp_path / "nan.safetensors", state | {f"{CONV}.weight": torch.full_like(state[f"{CONV}.weight"], torch.nan)}
    )
    cut = write(tmp_path / "cut.safetensors", {key: value for key, value in state.items() if key != f"{CONV}.weight"})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tuned": base}, "differs from .* in no weight that a LoRA changes: nothing was written"),
        ({"tuned": wide}, r"must be of one structure, got unet_sd1 and unet_sd1 with 1 weights that differ in shape"),
        ({"tuned": text}, "base and tuned must both have unet or text_encoder; they hold unet_sd1 and clip_text"),
        ({"tuned": nan}, f"{CONV}.weight differs by numbers that are not finite"),
        ({"tuned": cut}, "holds no whole unet_sd1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": None}, "rank or energy must be given, or both"),
        ({"energy": 2.0}, "energy must be above 0, and at most 1, got 2.0"),
        ({"parts": ("vae",)}, r"parts must be some of unet, text_encoder, in a tuple, got \('vae',\)"),
        ({"parts": "unet"}, "parts must be some of unet, text_encoder, in a tuple, got 'unet'"),
        ({"norms": True, "format": "diffusers"}, "norms=True needs format='kohya'"),
        ({"destination": base}, "destination must be another file than what is read"),
    ]
    for changed, message in cases:
        arguments: dict[str, Any] = {"base": base, "tuned": other, "destination": out, "rank": 2, **changed}
        with pytest.raises(ValueError, match=message):
            extract_lora(**arguments)
    assert not out.exists()
