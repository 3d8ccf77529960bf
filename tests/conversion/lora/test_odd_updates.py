"""Updates that are rare, or wrong in a way that names and shapes do not tell."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "foundationals" / "latent_diffusion" / "lora"))

from tiny_models import Layer, State, layers_of, make_tiny

from refiners.conversion.checkpoint import StateDict
from refiners.conversion.lora import inspect_lora, plan_lora, targets_of
from refiners.conversion.lora.names import Network
from refiners.foundationals.latent_diffusion import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.lora import SDLoraManager


@pytest.fixture(scope="module")
def model() -> LatentDiffusionModel:
    return make_tiny("sd1")


@pytest.fixture(scope="module")
def layers(model: LatentDiffusionModel) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers_of(model)}


LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = f"lora_unet_{LINEAR.replace('.', '_')}"


@pytest.mark.parametrize("ones", [(), (1, 1)])
def test_a_core_of_a_linear_layer(ones: tuple[int, ...], model: LatentDiffusionModel, layers: dict[str, Layer]) -> None:
    down, mid, up = torch.randn(2, 8, *ones), torch.randn(3, 2, *ones), torch.randn(8, 3, *ones)
    tensors = {f"{KEY}.lora_{role}.weight": value for role, value in (("down", down), ("mid", mid), ("up", up))}
    manager = SDLoraManager(model)
    manager.add_loras("style", {**tensors, f"{KEY}.alpha": torch.tensor(4.0)})
    x, layer = torch.randn(5, 8), layers[LINEAR].module
    (adapter,) = manager.lora_adapters
    expected = layer(x) + 2 * x @ (up.flatten(1) @ mid.flatten(1) @ down.flatten(1)).T
    torch.testing.assert_close(adapter(x), expected, rtol=1e-5, atol=1e-5)
    manager.remove_all()


def pair(down: Tensor, up: Tensor, name: str = KEY) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}


DOWN, UP = torch.ones(2, 8), torch.ones(8, 2)
WRONG = [
    (
        "a product",
        pair(DOWN, UP * 3e38) | {f"{KEY}.alpha": torch.tensor(8.0)},
        "up of .* not finite in torch.float32, ti",
    ),
    (
        "a core",
        pair(DOWN * 1e30, UP) | {f"{KEY}.lora_mid.weight": torch.full((2, 2), 1e30)},
        f"{KEY}: the product of mid and down is not finite",
    ),
    (
        "multipliers",
        pair(DOWN, UP)
        | {f"{KEY}.alpha": torch.tensor(1e308, dtype=torch.float64)}
        | {f"{KEY}.scalar": torch.tensor(1e308, dtype=torch.float64)},
        "the multipliers have an infinite product",
    ),
    (
        "a complex alpha",
        pair(DOWN, UP) | {f"{KEY}.alpha": torch.tensor(1j)},
        "alpha must be a real number, got one of torch.c",
    ),
    (
        "no alpha",
        pair(DOWN, UP) | {f"{KEY}.alpha": torch.empty((), device="meta")},
        "alpha must be a real number, got one of",
    ),
    (
        "the other side",
        {
            f"{KEY.replace('attn1_to_q', 'ff_net_2')}.weight": torch.ones(8),
            f"{KEY.replace('attn1_to_q', 'ff_net_2')}.on_input": torch.tensor(True),
        },
        "ff_net_2: factors must be \\(32,\\), one for each of the inputs",
    ),
    (
        "no pairs",
        {"a.weight": DOWN, "b.weight": torch.ones(3, 8)},
        "are no pairs of matrices, by their order: Rank mismatch",
    ),
    (
        "no floats",
        {"a.weight": torch.ones(2, 8, dtype=torch.int8)},
        "'a.weight' is no matrix of an update: got \\(2, 8\\) in torc",
    ),
    ("infinite", {"a.weight": DOWN * torch.nan, "b.weight": UP}, "'a?' holds numbers that are not finite"),
    ("mixed", pair(DOWN, UP[:, :, None, None], "nowhere"), "nowhere: Unsupported weight shapes"),
    ("unknown and infinite", pair(DOWN * torch.inf, UP, "nowhere"), "'nowhere' holds numbers that are not finite"),
]


@pytest.mark.parametrize(("tensors", "message"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_what_is_refused(tensors: dict[str, Tensor], message: str, model: LatentDiffusionModel) -> None:
    state, manager = State(model), SDLoraManager(model)
    with pytest.raises(ValueError, match=f"^the state dict: .*{message}|^the state dict: (.*\n)*.*{message}"):
        manager.add_loras("style", tensors, by_order=True)
    state.check()
    assert manager.names == []


def test_a_layer_whose_weight_is_no_matrix_is_told_by_its_shape(model: LatentDiffusionModel) -> None:
    """As a checkpoint has them, of which no layer is there to be asked."""
    networks = {
        part: Network(each.component, each.layout, each.shapes) for part, each in targets_of(model).networks.items()
    }
    norm = "lora_unet_conv_norm_out"
    kinds = [
        pair(torch.ones(2, 8), torch.ones(8, 2), norm),
        {f"{norm}.hada_w{one}_{side}": torch.ones(8, 8) for one in (1, 2) for side in "ab"},
        {f"{norm}.lokr_w1": torch.ones(8, 1), f"{norm}.lokr_w2": torch.ones(1, 1)},
        pair(torch.ones(2, 8), torch.ones(8, 2), norm) | {f"{norm}.dora_scale": torch.ones(1, 8)},
        {f"{norm}.weight": torch.ones(8), f"{norm}.on_input": torch.tensor(True)},
        {"unet.conv_norm_out.ia3_l": torch.ones(8, 1)},
    ]
    for tensors in kinds:
        (update,) = plan_lora(StateDict(tensors), networks).updates
        assert (update.status, update.path) == ("wrong", "Chain.GroupNorm")
        assert update.reason == "the layer's weight is (8,), expected that of a Linear or Conv2d"
    (update,) = plan_lora(StateDict({f"{norm}.w_norm": torch.ones(8)}), networks).updates
    assert update.status == "fits"


def test_shapes_tell_layers_of_one_name_apart() -> None:
    model = make_tiny("sdxl")
    name = "lycoris_text_model_encoder_layers_0_mlp_fc1"
    found = {}
    for size in (8, 16):
        (update,) = inspect_lora(pair(torch.ones(2, size), torch.ones(3 * size, 2), name), model).plan.updates
        found[size] = update.path
    assert re.search(r"^Parallel\.CLIPTextEncoderL\.", found[8]) and "CLIPTextEncoderG" in found[16]
    (update,) = inspect_lora(pair(torch.ones(2, 9), torch.ones(9, 2), name), model).plan.updates
    assert update.reason.startswith("the name may mean several layers: ")


def test_many_reasons_are_cut_off(model: LatentDiffusionModel, layers: dict[str, Layer]) -> None:
    names = [name for name, layer in layers.items() if "attn1.to_q" in name or "attn2.to_k" in name]
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        tensors |= pair(torch.ones(2, 100 + number), torch.ones(8, 2), f"unet.{name}")
    with pytest.raises(ValueError, match=rf"\.\.\. and {len(names) - 20} more reasons\n") as caught:
        SDLoraManager(model).add_loras("style", tensors)
    assert len(str(caught.value).splitlines()) < 50
