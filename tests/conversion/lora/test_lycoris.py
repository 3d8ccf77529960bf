"""Files of LyCORIS and of PEFT do to a layer what those libraries do to theirs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lycoris.modules as lycoris
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model_state_dict
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "foundationals" / "latent_diffusion" / "lora"))
sys.path.append(str(Path(__file__).parent))

from peft_trees import input_of, theirs_like, wrap
from small_models import names_of

from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

logging.getLogger("LyCORIS").setLevel(logging.ERROR)

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
WITH_BIAS = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
CONV = "up_blocks.1.resnets.2.conv1"
STRIDED = "down_blocks.0.downsamplers.0.conv"
SMALL_CONV = "down_blocks.1.attentions.0.proj_in"
NORM = "down_blocks.1.attentions.0.norm"
LAYERS = (LINEAR, WITH_BIAS, CONV, STRIDED, SMALL_CONV)

Make = Callable[[nn.Module], nn.Module]


def lora(**options: Any) -> Make:
    return lambda layer: lycoris.LoConModule("x", layer, lora_dim=4, alpha=2, **options)


def loha(**options: Any) -> Make:
    return lambda layer: lycoris.LohaModule("x", layer, alpha=2, **{"lora_dim": 4, **options})


def lokr(**options: Any) -> Make:
    return lambda layer: lycoris.LokrModule("x", layer, alpha=2, **{"lora_dim": 2, "factor": 4, **options})


KINDS: dict[str, tuple[str, Make]] = {
    "LoRA": ("LoRA", lora()),
    "LoCon, Tucker": ("LoRA", lora(use_tucker=True)),
    "LoHa": ("LoHa", loha()),
    "LoHa of a high rank": ("LoHa", loha(lora_dim=16)),
    "LoHa, Tucker": ("LoHa", loha(use_tucker=True)),
    "LoKr": ("LoKr", lokr()),
    "LoKr, both in factors": ("LoKr", lokr(decompose_both=True, lora_dim=1)),
    "LoKr, whole": ("LoKr", lokr(full_matrix=True)),
    "LoKr, Tucker": ("LoKr", lokr(use_tucker=True)),
    "DoRA of a LoKr, Tucker": ("DoRA", lokr(use_tucker=True, weight_decompose=True)),
    "DoRA": ("DoRA", lora(weight_decompose=True)),
    "DoRA of columns": ("DoRA", lora(weight_decompose=True, wd_on_out=False)),
    "DoRA, Tucker": ("DoRA", lora(use_tucker=True, weight_decompose=True)),
    "DoRA of columns, Tucker": ("DoRA", lora(use_tucker=True, weight_decompose=True, wd_on_out=False)),
    "DoRA of a LoHa": ("DoRA", loha(weight_decompose=True)),
    "DoRA of a LoKr": ("DoRA", lokr(weight_decompose=True)),
    "full": ("full difference", lambda layer: lycoris.FullModule("x", layer)),
}


def layer_of(model: StableDiffusion_1, name: str) -> Any:
    return names_of(model)[name]


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dora_scale" in name or "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            else:
                parameter.normal_(std=0.2)


def file_of(module: Any, name: str) -> dict[str, Tensor]:
    return {f"lora_unet_{name.replace('.', '_')}.{key}": value.detach() for key, value in module.state_dict().items()}


def assert_merged(manager: SDLoraManager, layer: Any, x: Tensor) -> None:
    """Check that the layer alone gives the same with its updates merged."""
    (adapter,) = manager.lora_adapters
    before = adapter(x)
    manager.merge()
    torch.testing.assert_close(layer(x), before, rtol=2e-5, atol=5e-5)
    manager.unmerge()


def assert_saved(manager: SDLoraManager, x: Tensor, path: Path) -> None:
    """Check that a file of what is attached gives the same."""
    (adapter,) = manager.lora_adapters
    before = adapter(x)
    manager.save("style", path)
    manager.remove_all()
    manager.load("style", path)
    (adapter,) = manager.lora_adapters
    assert torch.equal(adapter(x), before)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_lycoris(kind: str, name: str, manager: SDLoraManager, tmp_path: Path) -> None:
    title, make = KINDS[kind]
    layer = layer_of(manager.target, name)
    other = theirs_like(layer)
    module: Any = make(other)
    randomize(module)
    module.apply_to()
    (update,) = manager.add_loras("style", file_of(module, name)).updates
    assert update.kind in (title, "LoCon") and update.status == "fits"
    x, (adapter,) = input_of(layer), manager.lora_adapters
    torch.testing.assert_close(adapter(x), other(x), rtol=2e-5, atol=2e-5)
    assert_merged(manager, layer, x)
    assert_saved(manager, x, tmp_path / "saved.safetensors")


@pytest.mark.parametrize("of_inputs", [False, True])
@pytest.mark.parametrize("name", [LINEAR, WITH_BIAS])
def test_lycoris_ia3(name: str, of_inputs: bool, manager: SDLoraManager, tmp_path: Path) -> None:
    layer = layer_of(manager.target, name)
    other = theirs_like(layer)
    module: Any = lycoris.IA3Module("x", other, train_on_input=of_inputs)
    randomize(module)
    manager.add_loras("style", file_of(module, name))
    x, (adapter,) = input_of(layer), manager.lora_adapters
    module.apply_to()
    torch.testing.assert_close(adapter(x), other(x), rtol=1e-5, atol=1e-5)
    assert_merged(manager, layer, x)
    assert_saved(manager, x, tmp_path / "saved.safetensors")


def test_lycoris_norm(manager: SDLoraManager, tmp_path: Path) -> None:
    layer = layer_of(manager.target, NORM)
    other = theirs_like(layer)
    module: Any = lycoris.NormModule("x", other)
    randomize(module)
    manager.add_loras("style", file_of(module, NORM))
    x, (adapter,) = input_of(layer), manager.lora_adapters
    module.apply_to()
    torch.testing.assert_close(adapter(x), other(x), rtol=1e-5, atol=1e-5)
    assert_merged(manager, layer, x)
    assert_saved(manager, x, tmp_path / "saved.safetensors")


PEFT: dict[str, Callable[..., PeftConfig]] = {
    "LoRA": lambda alpha, **names: LoraConfig(r=4, lora_alpha=alpha, **names),
    "DoRA": lambda alpha, **names: LoraConfig(r=4, lora_alpha=alpha, use_dora=True, **names),
    "LoHa": lambda alpha, **names: LoHaConfig(r=4, alpha=alpha, **names),
    "LoKr": lambda alpha, **names: LoKrConfig(r=4, alpha=alpha, **names),
    "IA3": lambda alpha, **names: IA3Config(feedforward_modules=[], **names),
    "IA3 of inputs": lambda alpha, **names: IA3Config(feedforward_modules=names["target_modules"], **names),
}


def wrap_one(layer: Any, name: str, kind: str, alpha: float) -> Any:
    """Give a tree with one layer like this random updates."""
    return wrap({name: layer}, PEFT[kind](alpha, target_modules=[name]))


# A file does not tell IA3 of inputs from that of outputs where a convolution has as many of both.
PEFT_CASES = [(kind, name) for kind in PEFT for name in (LINEAR, WITH_BIAS, CONV, SMALL_CONV)]
PEFT_CASES.remove(("IA3 of inputs", SMALL_CONV))


@pytest.mark.parametrize(("kind", "name"), PEFT_CASES)
def test_peft(kind: str, name: str, manager: SDLoraManager) -> None:
    layer = layer_of(manager.target, name)
    alpha = 4 if kind == "LoKr" else 2  # of whole matrices the keys alone tell no rank
    wrapped = wrap_one(layer, name, kind, alpha)
    adapted = wrapped.base_model.model.get_submodule(name)
    prefix = "base_model.model."
    tensors = {f"unet.{key.removeprefix(prefix)}": value for key, value in get_peft_model_state_dict(wrapped).items()}
    if not kind.startswith("IA3"):
        tensors[f"unet.{name}.alpha"] = torch.tensor(float(alpha))
    manager.add_loras("style", tensors)
    x, (adapter,) = input_of(layer), manager.lora_adapters
    with torch.no_grad():
        torch.testing.assert_close(adapter(x), adapted(x), rtol=2e-5, atol=2e-5)
        assert_merged(manager, layer, x)


@pytest.mark.parametrize("name", [LINEAR, SMALL_CONV, CONV])
@pytest.mark.parametrize("kind", PEFT)
def test_a_folder_of_peft(kind: str, name: str, manager: SDLoraManager, tmp_path: Path) -> None:
    layer = layer_of(manager.target, name)
    wrapped = wrap_one(layer, name, kind, 3)
    wrapped.save_pretrained(tmp_path)
    manager.load("style", tmp_path)
    x, (adapter,) = input_of(layer), manager.lora_adapters
    with torch.no_grad():
        expected = wrapped.base_model.model.get_submodule(name)(x)
        torch.testing.assert_close(adapter(x), expected, rtol=2e-5, atol=2e-5)
