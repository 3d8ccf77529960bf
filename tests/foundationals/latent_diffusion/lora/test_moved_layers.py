"""Where an adapter has added layers, so that names may mean others, nothing is attached to a wrong one."""

from __future__ import annotations

import pytest
from tiny_models import State, layers_of, make_tiny
from update_files import choose, draw_updates, tensors_of

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

FORMAT = "kohya, names of diffusers"
REASON = "an adapter has added layers beside it, so that its name may mean another one: eject that first"


@pytest.fixture
def model() -> LatentDiffusionModel:
    return make_tiny("sd1")


def test_a_layer_beside_others_of_its_class(model: LatentDiffusionModel) -> None:
    """The first of two linear layers becomes the second of three, which has the shape of the last one before."""
    block = model.unet.ensure_find(CrossAttentionBlock)
    path = block.get_path().removeprefix("SD1UNet.")
    layers = [each for each in layers_of(model) if each.path.startswith(f"{path}.Residual_3.Linear")]
    others = [each for each in layers_of(model) if each.path.startswith(f"{path}.Residual_2.Attention.Distribute")]
    tensors = tensors_of(FORMAT, draw_updates(FORMAT, "LoRA", layers))[0]
    beside = tensors_of(FORMAT, draw_updates(FORMAT, "LoRA", others))[0]
    added = fl.Linear(8, 8)
    block.layer("Residual_3", fl.Residual).insert(1, added)
    state, manager = State(model), SDLoraManager(model)
    with pytest.raises(ValueError, match=f"2: {REASON}"):
        manager.add_loras("style", tensors)
    plan = manager.add_loras("style", {**tensors, **beside}, partial=True)
    assert {each.name for each in plan.of_status("fits")} == {key.partition(".")[0] for key in beside}
    manager.remove_all()
    state.check()
    block.layer("Residual_3", fl.Residual).remove(added)
    assert manager.add_loras("style", tensors).is_whole


def test_a_chain_among_those_that_are_numbered(model: LatentDiffusionModel) -> None:
    layers = layers_of(model)
    tensors = tensors_of(FORMAT, draw_updates(FORMAT, "LoRA", choose(layers, FORMAT, "LoRA", "unet")))[0]
    texts = tensors_of(FORMAT, draw_updates(FORMAT, "LoRA", choose(layers, FORMAT, "LoRA", "text_encoder")))[0]
    blocks, added = model.unet.layer("DownBlocks", fl.Chain), fl.Chain(fl.Identity())
    blocks.insert(2, added)
    manager = SDLoraManager(model)
    with pytest.raises(ValueError, match=REASON):
        manager.add_loras("style", tensors)
    assert manager.add_loras("texts", texts).is_whole
    blocks.remove(added)
    assert manager.add_loras("style", tensors).is_whole
