"""Updates of a U-Net are trained as those of diffusers and PEFT are, saved, and read back there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file
from small_models import assert_same, make_sd1, names_of, state_of
from torch import Tensor, nn

from refiners.conversion.lora import inspect_lora
from refiners.fluxion.adapters.lora.files import load_loras, save_loras
from refiners.fluxion.adapters.lora.places import find_places
from refiners.fluxion.adapters.lora.training import TrainableLoras, add_trainable_loras, lora_plus_groups
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in"),
    *("conv1", "conv_shortcut", "time_emb_proj"),
]
LAYERS += ["downsamplers.0.conv"]


@pytest.fixture(scope="module")
def public() -> UNet2DConditionModel:
    """A U-Net of diffusers with the sizes and weights of a small one of ours."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64), cross_attention_dim=32, attention_head_dim=8, sample_size=16
    ).eval()


@pytest.fixture(scope="module")
def shared(public: UNet2DConditionModel) -> StableDiffusion_1:
    model = make_sd1()
    for name, layer in names_of(model).items():
        layer.load_state_dict(public.get_submodule(name).state_dict())
    return model


class Pair:
    """The two models, and what both are given."""

    def __init__(self, public: UNet2DConditionModel, model: StableDiffusion_1) -> None:
        self.public = public
        self.model = model
        paths = {id(place.layer): path for path, place in find_places(model.unet).items()}
        self.paths = {name: paths[id(layer)] for name, layer in names_of(model).items()}
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(2, 4, 16, 16, generator=generator)
        self.text = torch.randn(2, 5, 32, generator=generator)
        self.goal = torch.randn(2, 4, 16, 16, generator=generator)

    def adapt_public(self, **settings: Any) -> dict[str, nn.Parameter]:
        torch.manual_seed(2)
        self.public.add_adapter(LoraConfig(target_modules=LAYERS, **settings))
        return {name: p for name, p in self.public.named_parameters() if "lora_" in name}

    def ours(self) -> Tensor:
        self.model.set_unet_context(timestep=torch.tensor([[501], [20]]), clip_text_embedding=self.text)
        return self.model.unet(self.x)

    def theirs(self) -> Tensor:
        return self.public(self.x, torch.tensor([501, 20]), encoder_hidden_states=self.text).sample

    def loss(self, y: Tensor) -> Tensor:
        return (y - self.goal).square().mean()

    def adapt_ours(self, **settings: Any) -> TrainableLoras:
        chosen = [re.escape(path) for name, path in self.paths.items() if name.endswith(tuple(f".{x}" for x in LAYERS))]
        return add_trainable_loras("style", self.model.unet, paths=chosen, **settings)

    def cast(self, dtype: torch.dtype) -> None:
        self.x, self.text, self.goal = self.x.to(dtype), self.text.to(dtype), self.goal.to(dtype)
        for model in (self.public, self.model.unet):
            model.to(dtype=dtype)

    def matched(
        self, loras: TrainableLoras, theirs: dict[str, nn.Parameter]
    ) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Give each parameter of ours with theirs."""
        assert len(theirs) == len(loras.parameters()) > 100
        for name, other in theirs.items():
            layer, kind, _, _ = name.rsplit(".", 3)
            lora = loras.loras[self.paths[layer]]
            yield (lora.down if kind == "lora_A" else lora.up).weight, other


@pytest.fixture
def pair(public: UNet2DConditionModel, shared: StableDiffusion_1) -> Iterator[Pair]:
    """The two models, without updates before and after."""
    before, made = state_of(shared), Pair(public, shared)
    yield made
    made.cast(torch.float32)
    if getattr(public, "_hf_peft_config_loaded", False):
        public.unload_lora()
    SDLoraManager(shared).remove_all()
    assert_same(before, shared)


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def same_masks(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Drop elements as `torch.nn.functional.dropout`, the same ones of inputs of one shape."""
    if not training:
        return x
    generator = torch.Generator().manual_seed(x.numel())
    return x * (torch.rand(x.shape, generator=generator) >= p) / (1 - p)


@pytest.mark.parametrize(
    ("settings", "theirs", "dtype"),
    [
        ({}, {}, torch.float64),
        ({}, {}, torch.float32),
        ({"alpha": 3.0, "rank_stabilized": True}, {"lora_alpha": 3.0, "use_rslora": True}, torch.float64),
        ({"alpha": 6.0, "dropout": 0.3}, {"lora_alpha": 6.0, "lora_dropout": 0.3}, torch.float64),
    ],
    ids=["plain", "float32", "stabilized", "dropout"],
)
def test_gradients_are_those_of_peft(
    pair: Pair,
    settings: dict[str, Any],
    theirs: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nn.functional, "dropout", same_masks)
    parameters = pair.adapt_public(**{"r": 4, "lora_alpha": 4, "init_lora_weights": False, **theirs})
    for module in pair.public.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.3:
            module.train()
    pair.cast(dtype)
    loras = pair.adapt_ours(rank=4, **settings)
    with torch.no_grad():
        for mine, other in pair.matched(loras, parameters):
            other.mul_(0.3)  # what is drawn is too large to be learned from
            mine.copy_(other)
    ours, expected = pair.ours(), pair.theirs()
    assert error(ours, expected) < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    pair.loss(ours).backward()
    pair.loss(expected).backward()
    grads = [(mine.grad, other.grad) for mine, other in pair.matched(loras, parameters)]
    if dtype == torch.float64:
        largest = max(other.norm() for _, other in grads)
        for mine, other in grads:  # some are zero: what a norm of one channel takes out again
            assert (mine - other).norm() < 1e-11 * other.norm() + 1e-13 * largest
        assert sum(other.norm() > 1e-6 * largest for _, other in grads) > 0.9 * len(grads)
    else:
        assert error(*(torch.cat([grad.flatten() for grad in each]) for each in zip(*grads, strict=True))) < 2e-5
    loras.eject()


def train(pair: Pair, loras: TrainableLoras, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW(lora_plus_groups(loras.loras.values(), lr=2e-3, ratio=4.0))
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = pair.loss(pair.ours())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": 3.0},
    "stabilized, by layer": {"alpha": 3.0, "rank_stabilized": True, "rank_pattern": {r".*Attention\..*": 2}},
    "PiSSA": {"alpha": 3.0, "initialisation": "pissa"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_was_trained_is_read_back(pair: Pair, settings: dict[str, Any], tmp_path: Path) -> None:
    with torch.no_grad():
        base = pair.ours()
    loras = pair.adapt_ours(rank=4, **settings)
    losses = train(pair, loras)
    assert losses[-1] < losses[0]
    manager = SDLoraManager(pair.model)
    with torch.no_grad():
        trained = pair.ours()
    assert error(trained, base) > 0.01
    assert manager.scales == {"style": 1.0}
    for format in ("kohya", "diffusers"):
        path: Any = tmp_path / f"{format}.safetensors"
        manager.save("style", path, format=format)
        report = inspect_lora(path, pair.model)
        assert report.plan.is_whole and len(report.plan.updates) == len(loras.loras)
        loras.eject()
        manager.load("style", path)
        with torch.no_grad():
            assert error(pair.ours(), trained) < 1e-5
        manager.remove_all()
        loras.inject()
    # diffusers reads one alpha for all layers from files of kohya's kind, unless all are multiplied alike
    formats = ["diffusers"] if "rank_pattern" in settings else ["diffusers", "kohya"]
    for format in formats:
        state, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path / f"{format}.safetensors")
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, pair.public, adapter_name=format)
        with torch.no_grad():
            assert error(pair.theirs(), trained) < 1e-5
        pair.public.delete_adapters(format)
    loras.eject()


def test_the_alpha_in_a_file_is_that_of_its_reader(pair: Pair, tmp_path: Path) -> None:
    for options, alpha, rank in (
        ({}, 4.0, 4),
        ({"alpha": 3.0}, 3.0, 4),
        ({"alpha": 3.0, "rank_stabilized": True}, 6.0, 4),
    ):
        loras = pair.adapt_ours(rank=4, **options)
        SDLoraManager(pair.model).save("style", tmp_path / "a.safetensors")
        loras.eject()
        tensors = load_file(tmp_path / "a.safetensors")
        alphas = {value.item() for key, value in tensors.items() if key.endswith(".alpha")}
        assert alphas == {alpha} and alpha / rank == pytest.approx(
            options.get("alpha", rank) / (math.sqrt(rank) if "rank_stabilized" in options else rank)
        )


def test_pissa_is_written_with_twice_the_rank(pair: Pair, tmp_path: Path) -> None:
    loras = pair.adapt_ours(rank=4, initialisation="pissa")
    SDLoraManager(pair.model).save("style", tmp_path / "a.safetensors")
    loras.eject()
    tensors = load_file(tmp_path / "a.safetensors")
    downs = {key: value for key, value in tensors.items() if key.endswith("lora_down.weight")}
    assert {value.shape[0] for value in downs.values()} == {8}
    for key, down in downs.items():  # nothing was trained
        up = tensors[key.replace("lora_down", "lora_up")]
        assert not (up.flatten(1) @ down.flatten(1)).any() and down.any() and up.any()


def test_the_manager_sees_updates_that_are_trained(pair: Pair) -> None:
    loras = pair.adapt_ours(rank=4, alpha=2.0)
    with torch.no_grad():
        for parameter in loras.parameters():
            parameter.add_(torch.randn(parameter.shape) / 20)
        manager = SDLoraManager(pair.model)
        trained = pair.ours()
        weights = manager.get_lora_weights("style")
        manager.merge()
        assert error(pair.ours(), trained) < 1e-5
        manager.unmerge()
        assert torch.equal(pair.ours(), trained)
        manager.set_scale("style", 0.0)
        without = pair.ours()
        manager.remove_loras("style")
        assert torch.equal(pair.ours(), without)
        loras.eject()
        manager.add_loras("again", weights)
        assert error(pair.ours(), trained) < 1e-5


def test_a_file_by_paths_is_one_for_the_manager(pair: Pair, tmp_path: Path) -> None:
    loras = pair.adapt_ours(rank=4, alpha=2.0)
    with torch.no_grad():
        for parameter in loras.parameters():
            parameter.add_(torch.randn(parameter.shape) / 20)
        trained = pair.ours()
        save_loras(pair.model.unet, "style", tmp_path / "a.safetensors")
        loras.eject()
        manager = SDLoraManager(pair.model)
        assert manager.load("style", tmp_path / "a.safetensors").is_whole
        assert error(pair.ours(), trained) < 1e-5
        manager.remove_all()
        load_loras(pair.model.unet, "style", tmp_path / "a.safetensors")
        assert error(pair.ours(), trained) < 1e-5
        manager.remove_all()


def test_text_encoders_are_trained_too(shared: StableDiffusion_1, tmp_path: Path) -> None:
    before, encoder, path = state_of(shared), shared.clip_text_encoder, tmp_path / "a.safetensors"
    base = encoder("a cat")
    loras = add_trainable_loras("style", encoder, rank=2, alpha=1.0)
    optimizer = torch.optim.AdamW(loras.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (encoder("a cat") - base.flip(2).detach()).square().mean().backward()
        optimizer.step()
    trained, manager = encoder("a cat"), SDLoraManager(shared)
    manager.save("style", path)
    loras.eject()
    manager.load("style", path)
    assert error(encoder("a cat"), trained) < 1e-5 < error(base, trained)
    manager.remove_all()
    assert_same(before, shared)
