"""LoRAs are added, scaled and removed by name: all of a file or nothing, and removed without a trace."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.conversion.naming.unet import SD15, SDXL, DiffusersUNet, RefinersSDXLUNet, RefinersUNet, unet_names
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.clip import CLIPTextEncoder
from refiners.foundationals.clip.concepts import ConceptExtender
from refiners.foundationals.latent_diffusion import (
    DoubleTextEncoder,
    LatentDiffusionModel,
    SD1Autoencoder,
    SD1UNet,
    SDXLAutoencoder,
    SDXLUNet,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.lora import Lora, LoraAdapter, SDLoraManager, auto_attach_loras
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.lcm_lora import add_lcm_lora

SMALL_SD1 = replace(SD15, channels=(32, 64, 64, 64))
SMALL_XL = replace(SDXL, channels=(32, 64, 64), depths=(0, 1, 2), middle_depth=2)


def text_encoder(dim: int, layers: int = 3) -> CLIPTextEncoder:
    return CLIPTextEncoder(embedding_dim=dim, num_layers=layers, num_attention_heads=2, feedforward_dim=dim)


def make_sd1() -> StableDiffusion_1:
    unet = SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=32)
    return StableDiffusion_1(unet, SD1Autoencoder(channels=(32, 32, 64, 64)), text_encoder(32))


def make_xl() -> StableDiffusion_XL:
    sizes = {"channels": (32, 64, 64), "num_attention_layers": (0, 1, 2), "head_dim": 32, "text_embedding_dim": 96}
    unet = SDXLUNet(4, pooled_text_embedding_dim=64, **sizes)
    texts = DoubleTextEncoder(text_encoder(32), text_encoder(64))
    return StableDiffusion_XL(unet, SDXLAutoencoder(channels=(32, 32, 64, 64)), texts)


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion_1:
    return make_sd1()


@pytest.fixture
def manager(sd1: StableDiffusion_1) -> Any:
    """A manager of a model, which must be as it was after each test."""
    before = state_of(sd1)
    made = SDLoraManager(sd1)
    yield made
    made.remove_all()
    assert_same(before, sd1)


def state_of(model: LatentDiffusionModel) -> tuple[dict[str, Tensor], dict[str, int]]:
    networks = (model.unet, model.clip_text_encoder)
    modules = {f"{i}.{key}": id(module) for i in (0, 1) for key, module in networks[i].named_modules()}
    return {f"{i}.{key}": value.clone() for i in (0, 1) for key, value in networks[i].state_dict().items()}, modules


def assert_same(before: tuple[dict[str, Tensor], dict[str, int]], model: LatentDiffusionModel) -> None:
    weights, modules = state_of(model)
    assert modules == before[1] and list(weights) == list(before[0])
    assert all(torch.equal(weights[key], value) for key, value in before[0].items())


def names_of(model: LatentDiffusionModel) -> dict[str, fl.Module]:
    """Give the layers of a U-Net by the names that diffusers has for them."""
    is_xl = isinstance(model, StableDiffusion_XL)
    layout, ours = (SMALL_XL, RefinersSDXLUNet) if is_xl else (SMALL_SD1, RefinersUNet)
    names = zip(unet_names(layout, DiffusersUNet), unet_names(layout, ours), strict=True)
    return {theirs.layer: model.unet.get_submodule(mine.layer) for theirs, mine in names}


def draw(model: LatentDiffusionModel, pattern: str = r"attn[12]\.", rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Draw a file as kohya writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, layer in names_of(model).items():
        if isinstance(layer, (fl.Linear, fl.Conv2d)) and re.search(pattern, name):
            key = "lora_unet_" + name.replace(".", "_")
            weight = layer.weight
            ones = (1,) * (weight.ndim - 2)
            tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], rank, *ones, generator=generator)
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    assert tensors
    return tensors


@pytest.fixture(scope="module")
def style(sd1: StableDiffusion_1) -> dict[str, Tensor]:
    return draw(sd1)


FIRST = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_1_mlp_fc1"


# --- names and scales -------------------------------------------------------------------------------------------------


def test_names_come_in_the_order_in_which_they_were_added(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    assert manager.names == [] and manager.scales == {} and manager.loras == [] == manager.lora_adapters
    late = draw(manager.target, r"up_blocks\.3.*attn2")
    for name, tensors in (("z", late), ("a", style), ("m", late)):
        manager.add_loras(name, tensors)
    assert manager.names == ["z", "a", "m"]
    assert all(isinstance(lora, Lora) and lora.name == "m" for lora in manager.get_loras_by_name("m"))
    manager.remove_loras("z")
    manager.add_loras("z", late)
    assert manager.names == ["a", "m", "z"]
    assert set(SDLoraManager(manager.target).names) == {"a", "m", "z"}  # another manager sees them, too


def test_scales_are_kept_by_name(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    manager.add_loras("one", tensors=style, scale=0.4)
    manager.add_loras("two", style, 0.5)
    assert manager.scales == {"one": 0.4, "two": 0.5} and manager.get_scale("one") == 0.4
    manager.set_scale("one", -1.0)
    manager.update_scales({"two": 2})
    assert manager.scales == {"one": -1.0, "two": 2}
    with pytest.raises(AssertionError, match="Scales keys must be a subset of"):
        manager.update_scales({"one": 3.0, "three": 1.0})
    with pytest.raises(TypeError, match="scale of 'two' must be a number or a tensor, got str"):
        manager.update_scales({"one": 3.0, "two": "1"})  # pyright: ignore[reportArgumentType]
    assert manager.scales == {"one": -1.0, "two": 2}
    manager.get_loras_by_name("one")[0].scale = 7.0
    with pytest.raises(AssertionError, match="different scales"):
        manager.get_scale("one")


def test_wrong_names_are_told(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    manager.add_loras("one", style)
    with pytest.raises(AssertionError, match="LoRA one already exists"):
        manager.add_loras("one", style)
    for call in (manager.get_scale, manager.get_lora_weights, manager.remove_loras):
        with pytest.raises(ValueError, match="there is no LoRA 'other'; there are: one"):
            call("other")
    with pytest.raises(ValueError, match="there is no LoRA 'other'"):
        manager.remove_loras("one", "other")
    assert manager.names == ["one"]
    with pytest.raises(TypeError, match="target must be a LatentDiffusionModel, got Chain"):
        SDLoraManager(fl.Chain())  # pyright: ignore[reportArgumentType]


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_sd1, make_xl])
def test_an_update_is_added_to_the_weight_of_the_layer_of_its_name(make: Callable[[], LatentDiffusionModel]) -> None:
    model = make()
    tensors = draw(model, r".")
    layers = names_of(model)
    manager = SDLoraManager(model)
    manager.add_loras("style", tensors, scale=0.6)
    for name, layer in layers.items():
        if not isinstance(layer, (fl.Linear, fl.Conv2d)):
            continue
        key = "lora_unet_" + name.replace(".", "_")
        (adapter,) = [each for each in manager.lora_adapters if each.target is layer]
        down, up = (tensors[f"{key}.lora_{part}.weight"] for part in ("down", "up"))
        change = 0.6 * 1 / 2 * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
        x = torch.randn(3, layer.weight.shape[1], *((6, 6) if layer.weight.ndim == 4 else ()))
        with torch.no_grad():
            y = adapter(x)
            layer.weight += change
            torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-4)


def test_alpha_is_the_multiplier_of_the_file(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    up, down = f"{FIRST}.lora_up.weight", f"{FIRST}.lora_down.weight"
    plan = manager.add_loras("style", {**style, f"{FIRST}.alpha": torch.tensor(3.0)})
    update = next(each for each in plan.updates if each.name == FIRST)
    assert (update.rank, update.alpha, update.scale) == (2, 3.0, 1.5)
    lora = next(each for each in manager.loras if torch.equal(each.down.weight, style[down]))
    torch.testing.assert_close(lora.up.weight.data, style[up] * 1.5)
    manager.remove_all()
    manager.add_loras("style", {key: value for key, value in style.items() if "alpha" not in key})
    lora = next(each for each in manager.loras if torch.equal(each.down.weight, style[down]))
    assert torch.equal(lora.up.weight, style[up])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_updates_have_the_dtype_of_their_layers(dtype: torch.dtype) -> None:
    model = make_sd1().to(dtype=dtype)
    manager = SDLoraManager(model)
    tensors = {**draw(model), f"{FIRST}.alpha": torch.tensor(0.3)}
    manager.add_loras("style", tensors)
    assert {lora.up.weight.dtype for lora in manager.loras} == {dtype}
    lora = next(each for each in manager.loras if each.up.weight.shape == (32, 2))
    expected = tensors[f"{FIRST}.lora_up.weight"]
    exact = expected.double() * (torch.tensor(0.3).item() / 2)
    assert torch.equal(lora.up.weight.data, (exact if dtype == torch.float64 else exact.float()).to(dtype))


def test_scopes_leave_the_rest_out(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    text = {f"{TEXT}.lora_down.weight": torch.randn(2, 32), f"{TEXT}.lora_up.weight": torch.randn(32, 2)}
    plan = manager.add_loras(
        "a", {**style, **text}, unet_inclusions=["DownBlocks"], text_encoder_exclusions=["Residual"]
    )
    assert {update.path.split(".")[0] for update in plan.of_status("fits")} == {"DownBlocks"}
    assert plan.is_whole and {update.reason for update in plan.of_status("left out")} == {
        "outside of the scope that was asked for"
    }
    plan = manager.add_loras("b", {**style, **text}, unet_exclusions=["SelfAttention"], text_encoder_inclusions=[])
    assert {update.part for update in plan.of_status("fits")} == {"unet"}
    assert plan.of_status("fits") and not any("SelfAttention" in each.path for each in plan.of_status("fits"))


def test_layers_without_an_own_adapter_share_one(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    for name in ("a", "b"):
        manager.add_loras(name, style)
    assert len(manager.lora_adapters) * 2 == len(manager.loras) == 256
    manager.remove_loras("a")
    assert len(manager.lora_adapters) == len(manager.loras) == 128 and manager.names == ["b"]


def test_any_sequence_leaves_no_trace(manager: SDLoraManager) -> None:
    parts = [r"attn1", r"attn2\.to_[kv]", r"conv[12]$", r"."]
    files = {f"lora {i}": draw(manager.target, part, seed=i) for i, part in enumerate(parts)}
    choose = random.Random(0)
    before = state_of(manager.target)
    for _ in range(40):
        name = choose.choice(list(files))
        if name in manager.names:
            choose.choice([manager.remove_loras, lambda each: manager.set_scale(each, 0.5)])(name)
        else:
            manager.add_loras(name, files[name])
    manager.remove_all()
    assert_same(before, manager.target)


def test_concepts_may_be_in_the_text_encoder(manager: SDLoraManager) -> None:
    encoder = manager.target.clip_text_encoder
    before = state_of(manager.target)
    extender = ConceptExtender(encoder)
    extender.add_concept("<cat>", torch.randn(32))
    extender.inject()
    manager.add_loras(
        "a", {f"{TEXT}.lora_down.weight": torch.randn(2, 32), f"{TEXT}.lora_up.weight": torch.randn(32, 2)}
    )
    assert [adapter.get_path() for adapter in manager.lora_adapters] == [
        "ConceptExtender.CLIPTextEncoder.TransformerLayer_2.Residual_2.FeedForward.LoraAdapter"
    ]
    embedding = "lora_te_text_model_embeddings_token_embedding"
    with pytest.raises(ValueError, match="an adapter has replaced the layer, and does without it"):
        manager.add_loras(
            "b", {f"{embedding}.lora_down.weight": torch.randn(2, 32), f"{embedding}.lora_up.weight": torch.randn(9, 2)}
        )
    manager.remove_all()
    extender.eject()
    assert_same(before, manager.target)


# --- our own files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_sd1, make_xl])
def test_weights_are_given_with_keys_that_are_understood(make: Callable[[], LatentDiffusionModel]) -> None:
    model = make()
    manager = SDLoraManager(model)
    manager.add_loras("one", draw(model, r"."), scale=0.3)
    weights = manager.get_lora_weights("one")
    expected = {id(adapter.target): adapter.loras["one"] for adapter in manager.lora_adapters}
    assert len(weights) == 2 * len(expected)
    manager.add_loras("two", dict(reversed(weights.items())))
    for adapter in manager.lora_adapters:
        one, two = adapter.loras["one"], adapter.loras["two"]
        assert torch.equal(one.down.weight, two.down.weight) and torch.equal(one.up.weight, two.up.weight)


def test_keys_are_those_of_the_tree(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    manager.add_loras("one", style)
    block = "SD1UNet.DownBlocks.Chain_2.CLIPLCrossAttention.Chain_2.CrossAttentionBlock.Residual_1.SelfAttention"
    assert list(manager.get_lora_weights("one"))[:8] == [
        f"{block}.{layer}.{part}.weight"
        for layer in ("Distribute.1.Linear", "Distribute.2.Linear", "Distribute.3.Linear", "1.Linear")
        for part in ("down", "up")
    ]


def test_numbers_that_may_mean_several_layers_are_told(manager: SDLoraManager) -> None:
    manager.add_loras("one", draw(manager.target, r"down_blocks\.0\.attentions\.0.*attn1\.to_[qv]"))
    weights = manager.get_lora_weights("one")
    assert len(weights) == 4
    with pytest.raises(ValueError, match="the name may mean several layers: unet .*Linear_1, unet .*Linear_2"):
        manager.add_loras("two", weights)


# --- names that are not known -----------------------------------------------------------------------------------------


def unknown(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give names that no library has, in the order of the tree."""
    order = [key for key in tensors if not key.endswith("alpha")]
    names = [f"unet_{i // 50}_layer_{i % 50}.lora_{part}.weight" for i in range(len(order)) for part in ("down", "up")]
    return {name: tensors[key] for name, key in zip(names, order)}


def test_unknown_names_go_by_order_with_a_warning(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    manager.add_loras("known", {key: value for key, value in style.items() if "alpha" not in key})
    with pytest.warns(UserWarning, match="no layers are known by the names of 128 updates, such as unet_0_layer_0"):
        plan = manager.add_loras("order", unknown(style), scale=0.5, unet_inclusions=["CrossAttentionBlock"])
    assert plan.is_whole and len(plan.of_status("by order")) == 128 and manager.scales["order"] == 0.5
    for adapter in manager.lora_adapters:
        assert torch.equal(adapter.loras["known"].down.weight, adapter.loras["order"].down.weight)


@pytest.mark.filterwarnings("ignore:no layers are known by the names:UserWarning")
def test_unknown_names_that_do_not_cover_a_shape_are_an_error(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    tensors = unknown(draw(manager.target, r"attn2\."))
    with pytest.raises(ValueError, match="sanity check failed: .* attached twice"):
        manager.add_loras("order", tensors)  # there are layers of these shapes in self-attention
    half = {**style, "unet_other.lora_down.weight": torch.randn(2, 5), "unet_other.lora_up.weight": torch.randn(5, 2)}
    with pytest.raises(ValueError, match="sanity check failed: 0 / 1 LoRA layers attached, 1 failed"):
        manager.add_loras("half", half)
    assert manager.names == []


def test_keys_of_no_known_ending_go_by_order_two_by_two(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    pairs = {f"layer_{i:03}.{i % 2}.weight": value for i, value in enumerate(unknown(style).values())}
    with pytest.warns(UserWarning, match="by the names of 128 updates"):
        manager.add_loras("order", pairs, unet_inclusions=["CrossAttentionBlock"])
    assert len(manager.loras) == 128


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a_1_b_to_q", ("a_01_b_to", 1)),
        ("a_to_k_lora", ("a_to", 2)),
        ("a_10_to_v", ("a_10_to", 3)),
        ("proj_in", ("proj", 3)),
        ("to_out_0", ("to", 4)),
        ("to_out0_lora", ("to", 4)),
        ("proj_out", ("proj", 4)),
        ("a_2_ff", ("a_02_ff", 5)),
    ],
)
def test_keys_are_sorted_by(key: str, expected: tuple[str, int]) -> None:
    assert SDLoraManager.sort_keys(key) == expected


# --- files that are wrong ---------------------------------------------------------------------------------------------


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != key}


def swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    down, up = f"{FIRST}.lora_down.weight", f"{FIRST}.lora_up.weight"
    return {**tensors, down: tensors[up], up: tensors[down]}


DOTTED = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MISTAKES: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    ("no up", lambda t: without(t, f"{FIRST}.lora_up.weight"), "the matrix 'up' is missing"),
    ("no down", lambda t: without(t, f"{FIRST}.lora_down.weight"), "the matrix 'down' is missing"),
    ("swapped", swapped, r"down and up must have one rank, got down \(32, 2\), up \(2, 32\)|do not fit"),
    ("size", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(33, 2)}, r"do not fit the layer's weight, which is"),
    ("rank", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(32, 3)}, "must have one rank"),
    ("dimensions", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(32)}, "must be those of linear layers"),
    ("empty", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(32, 0)}, "must be those of linear layers"),
    ("NaN", lambda t: t | {f"{FIRST}.lora_up.weight": torch.full((32, 2), torch.nan)}, "up of .*to_q holds numbers"),
    ("infinite", lambda t: t | {f"{FIRST}.lora_down.weight": torch.full((2, 32), torch.inf)}, "down of .*to_q holds"),
    ("alpha", lambda t: t | {f"{FIRST}.alpha": torch.tensor(torch.nan)}, "alpha must be finite, got nan"),
    ("alphas", lambda t: t | {f"{FIRST}.alpha": torch.ones(3)}, r"alpha must be one number, got shape \(3,\)"),
    ("lone alpha", lambda t: t | {"lora_unet_conv_in.alpha": torch.ones(())}, "a multiplier without matrices"),
    ("integers", lambda t: t | {f"{FIRST}.lora_up.weight": torch.ones(32, 2, dtype=torch.int8)}, "up is of torch.int8"),
    (
        "twice",
        lambda t: t | {f"{DOTTED}.lora_A.weight": torch.randn(2, 32), f"{DOTTED}.lora_B.weight": torch.randn(32, 2)},
        "has several updates",
    ),
    ("role twice", lambda t: t | {f"{FIRST}.lora_A.weight": torch.randn(2, 32)}, "down is given twice"),
    ("left over", lambda t: t | {"something.else": torch.randn(2)}, "no tensor of an update that is known"),
    (
        "kernel",
        lambda t: (
            t
            | {
                "lora_unet_conv_in.lora_down.weight": torch.randn(2, 4, 1, 1),
                "lora_unet_conv_in.lora_up.weight": torch.randn(32, 2, 1, 1),
            }
        ),
        r"do not fit the layer's weight, which is \(32, 4, 3, 3\)",
    ),
    (
        "norm",
        lambda t: (
            t
            | {
                "lora_unet_conv_norm_out.lora_down.weight": torch.randn(2, 32),
                "lora_unet_conv_norm_out.lora_up.weight": torch.randn(32, 2),
            }
        ),
        "the layer is a GroupNorm, expected Linear or Conv2d",
    ),
    ("DoRA", lambda t: t | {f"{FIRST}.dora_scale": torch.randn(32, 1)}, "DoRA is not supported yet"),
    ("LoHa", lambda t: t | {"lora_unet_conv_in.hada_w1_a": torch.randn(2, 2)}, "LoHa is not supported yet"),
]


@pytest.mark.parametrize("change, message", [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES])
def test_a_wrong_file_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    manager: SDLoraManager,
    style: dict[str, Tensor],
) -> None:
    before = state_of(manager.target)
    with pytest.raises(ValueError, match=message):
        manager.add_loras("wrong", change(dict(style)))
    assert_same(before, manager.target)
    assert manager.names == []


@pytest.mark.parametrize("change", [each[1] for each in MISTAKES if "NaN" != each[0] != "infinite"])
def test_the_rest_of_a_wrong_file_is_attached_if_asked_for(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], manager: SDLoraManager, style: dict[str, Tensor]
) -> None:
    plan = manager.add_loras("rest", change(dict(style)), partial=True)
    assert not plan.is_whole
    assert len(manager.loras) == len(plan.of_status("fits")) in (127, 128)


def test_a_failure_in_the_middle_changes_nothing(
    manager: SDLoraManager, style: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = draw(manager.target, r".")
    manager.add_loras("first", style)
    before = state_of(manager.target)
    inject, calls = LoraAdapter.inject, iter(range(1000))

    def fail(self: LoraAdapter, parent: fl.Chain | None = None) -> LoraAdapter:
        if next(calls) == 20:
            raise MemoryError("no more")
        return inject(self, parent)

    monkeypatch.setattr(LoraAdapter, "inject", fail)
    with pytest.raises(MemoryError, match="no more"):
        manager.add_loras("second", everything)
    monkeypatch.undo()
    assert_same(before, manager.target)
    assert manager.names == ["first"]


def test_files(manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_to_safetensors(path, style)
    manager.load("style", path, 0.5)
    assert manager.scales == {"style": 0.5} and len(manager.loras) == 128
    manager.remove_all()
    torch.save(style, tmp_path / "style.pt")
    assert manager.load("style", tmp_path / "style.pt").is_whole
    manager.remove_all()
    before = state_of(manager.target)
    for end in (4, 1000, path.stat().st_size - 1):
        (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:end])
        with pytest.raises(ValueError, match="is not a safetensors file|is cut off"):
            manager.load("cut", tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError):
        manager.load("none", tmp_path / "none.safetensors")
    assert_same(before, manager.target)


# --- LoRAs for few steps ----------------------------------------------------------------------------------------------


def test_lcm_loras() -> None:
    model = make_xl()
    manager = SDLoraManager(model)
    tensors = draw(model, r".", rank=4)
    add_lcm_lora(manager, tensors)
    assert manager.scales == {"lcm": 0.125}
    lora = next(each for each in manager.loras if each.rank == 4)
    assert any(torch.equal(lora.up.weight, value) for value in tensors.values())  # alphas are part of the scale
    unknown_names = {**tensors, "lora_unet_a.lora_down.weight": torch.ones(2, 2)}
    with pytest.raises(AssertionError, match="keys that begin with lora_unet_, got other"):
        add_lcm_lora(manager, {"other.alpha": torch.ones(())}, "b")
    with pytest.raises(AssertionError, match="LoRA lcm already exists"):
        add_lcm_lora(manager, tensors)
    with pytest.raises(ValueError, match="the matrix 'up' is missing"):
        add_lcm_lora(manager, unknown_names, "b")
    unknown_names["lora_unet_a.lora_up.weight"] = torch.ones(2, 2)
    with pytest.raises(AssertionError, match="bad mapping: no layer is known by 1 names, such as lora_unet_a"):
        add_lcm_lora(manager, unknown_names, "b")
    assert manager.names == ["lcm"]
    with pytest.raises(AssertionError, match="manager must be of a StableDiffusion_XL, got StableDiffusion_1"):
        add_lcm_lora(SDLoraManager(make_sd1()), tensors)


def test_the_core_is_at_hand() -> None:
    assert callable(auto_attach_loras) and issubclass(LoraAdapter, fl.Sum)
