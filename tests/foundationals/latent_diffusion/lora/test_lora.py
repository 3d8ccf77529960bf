"""LoRAs are added, scaled and removed by name, and removed without a trace."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import pytest
import torch
from small_models import FIRST, TEXT, assert_same, draw, make_sd1, make_xl, names_of, state_of
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import LinearLora
from refiners.foundationals.clip.concepts import ConceptExtender
from refiners.foundationals.latent_diffusion import (
    LatentDiffusionModel,
)
from refiners.foundationals.latent_diffusion.lora import Lora, LoraAdapter, SDLoraManager, auto_attach_loras
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.lcm_lora import add_lcm_lora


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


@pytest.mark.parametrize(
    "remove", [lambda manager: manager.remove_all(), lambda manager: manager.remove_loras("style")]
)
def test_the_memory_of_what_is_removed_is_free_at_once(
    manager: SDLoraManager, style: dict[str, Tensor], remove: Callable[[SDLoraManager], None]
) -> None:
    manager.add_loras("style", style)
    alive = [weakref.ref(weight) for lora in manager.loras for weight in lora.parameters()]
    gc.disable()  # memory of a GPU would be full long before a collection
    try:
        remove(manager)
        assert alive and not any(weight() is not None for weight in alive)
    finally:
        gc.enable()


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
        with pytest.raises(ValueError, match=r"there is no LoRA 'other': there are \['one'\]"):
            call("other")
    with pytest.raises(ValueError, match="there is no LoRA 'other'"):
        manager.remove_loras("one", "other")
    assert manager.names == ["one"]
    with pytest.raises(TypeError, match="target must be a LatentDiffusionModel, got Chain"):
        SDLoraManager(fl.Chain())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("make", [make_sd1, make_xl])
def test_an_update_is_added_to_the_weight_of_the_layer_of_its_name(make: Callable[[], LatentDiffusionModel]) -> None:
    model = make()
    tensors = draw(model, r".")
    layers = names_of(model)
    manager = SDLoraManager(model)
    manager.add_loras("style", tensors, scale=0.6)
    adapters = {each.target: each for each in manager.lora_adapters}
    for name, layer in layers.items():
        if not isinstance(layer, (fl.Linear, fl.Conv2d)):
            continue
        key = "lora_unet_" + name.replace(".", "_")
        down, up = (tensors[f"{key}.lora_{part}.weight"] for part in ("down", "up"))
        change = 0.6 * 1 / 2 * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
        x = torch.randn(3, layer.weight.shape[1], *((6, 6) if layer.weight.ndim == 4 else ()))
        with torch.no_grad():
            y = adapters[layer](x)
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
    larger = "down" if tensors[f"{FIRST}.lora_down.weight"].max() > tensors[f"{FIRST}.lora_up.weight"].max() else "up"
    for part, weight in (("down", lora.down.weight), ("up", lora.up.weight)):
        exact = tensors[f"{FIRST}.lora_{part}.weight"].double()
        if part == (larger if dtype == torch.float16 else "up"):
            exact *= torch.tensor(0.3).item() / 2
        assert torch.equal(weight.data, (exact if dtype == torch.float64 else exact.float()).to(dtype))


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


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5])
def test_small_multipliers_of_files_are_precise_in_float16(size: float) -> None:
    """Matrices of a high rank and a low alpha, which a single one of them times both would lose in float16."""
    model = make_sd1().to(dtype=torch.float16)
    manager = SDLoraManager(model)
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(64, 32, generator=generator) / 32**0.5, torch.randn(32, 64, generator=generator) * size
    manager.add_loras(
        "style",
        {
            f"{FIRST}.lora_down.weight": down.half(),
            f"{FIRST}.lora_up.weight": up.half(),
            f"{FIRST}.alpha": torch.tensor(0.7),
        },
    )
    lora = next(each for each in manager.get_loras_by_name("style") if isinstance(each, LinearLora))
    actual = lora.up.weight.double() @ lora.down.weight.double()
    expected = up.half().double() @ down.half().double() * (0.7 / 64)
    assert (actual - expected).norm() <= 1e-3 * expected.norm()
