"""What PEFT says of a file beside its tensors means here what it means there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, OFTConfig, VeraConfig
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[2] / "foundationals" / "latent_diffusion" / "lora"))
sys.path.append(str(Path(__file__).parent))

from peft_trees import input_of, wrap
from small_models import names_of

from refiners.conversion.lora import inspect_lora
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.inspect import main as inspect

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEAR, SQUARE = f"{BLOCK}.ff.net.2", f"{BLOCK}.attn1.to_q"
CONV, SQUARE_CONV = "up_blocks.1.resnets.2.conv1", "down_blocks.1.attentions.0.proj_in"
LAYERS = ("conv_in", LINEAR, SQUARE, f"{BLOCK}.attn2.to_q", f"{BLOCK}.attn2.to_k", CONV, SQUARE_CONV)


def layers_like(model: StableDiffusion_1, *names: str) -> dict[str, Any]:
    return {name: names_of(model)[name] for name in names}


def file_of(folder: Path) -> Path:
    """Write the file that diffusers makes of a folder of PEFT."""
    config = json.loads((folder / "adapter_config.json").read_text())
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    tensors = load_file(folder / "adapter_model.safetensors")
    path = folder.with_name(f"{folder.name}-diffusers.safetensors")
    save_file(
        {f"unet.{key.removeprefix('base_model.model.')}": value for key, value in tensors.items()}, path, metadata
    )
    return path


EXPRESSIONS = (
    "to_q",
    "^conv_in",
    "^to_q",
    f"^{BLOCK}.attn1.to_q",
    r"^down_blocks\.\d+.*to_q",
    "^(conv_in|attn1.to_q)",
    "^conv_in|to_k",
    r"(.+\.)*to_q",
    r"(?:.*\.)?to_[qk]",
    r"(.+\.)+conv_in",
    r"^(.+\.)*conv1|to_k",
    ".*attn1.*to_q",
    r".*\.attn\d\.to_q",
    "attn2|conv_in",
    "unet.conv_in",
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.filterwarnings("ignore:.*(alpha|rank)_pattern.*")
def test_expressions(expression: str, model: StableDiffusion_1, tmp_path: Path) -> None:
    ranks = {"rank_pattern": {expression: 3}} if expression.startswith("^") else {}
    config = LoraConfig(r=2, lora_alpha=2, target_modules=list(LAYERS), alpha_pattern={expression: 7}, **ranks)
    wrapped = wrap(layers_like(model, *LAYERS), config)
    wrapped.save_pretrained(tmp_path)
    expected = {name: wrapped.base_model.model.get_submodule(name).scaling["default"] for name in LAYERS}
    for path, prefix in ((tmp_path, "base_model.model."), (file_of(tmp_path), "unet.")):
        updates = inspect_lora(path, model).plan.updates
        assert {update.name.removeprefix(prefix): update.scale for update in updates} == expected


BASES = ("pissa", "pissa_niter_2", "olora")


@pytest.mark.parametrize("start", BASES)
def test_other_weights_of_the_base(
    start: str, manager: SDLoraManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = layers_like(manager.target, LINEAR)
    config: Any = LoraConfig(r=2, lora_alpha=3, target_modules=[LINEAR], init_lora_weights=start)  # pyright: ignore[reportArgumentType]
    wrapped = wrap(layers, config)
    wrapped.save_pretrained(tmp_path / "residual")
    message = rf"init_lora_weights is '{start}': .* path_initial_model_for_weight_conversion="
    for path in (tmp_path / "residual", file_of(tmp_path / "residual")):
        for call in (inspect_lora, lambda file: manager.load("style", file)):
            with pytest.raises(ValueError, match=message):
                call(path)
        assert inspect([str(path)]) == 2
        assert f"init_lora_weights is '{start}'" in capsys.readouterr().err


@pytest.mark.parametrize("start", BASES)
@pytest.mark.filterwarnings("ignore:.*(init_lora_weights|changes the base weights).*")
def test_weights_of_the_base_that_were_converted(start: str, manager: SDLoraManager, tmp_path: Path) -> None:
    layers = layers_like(manager.target, LINEAR)
    config: Any = LoraConfig(r=2, lora_alpha=3, target_modules=[LINEAR], init_lora_weights=start)  # pyright: ignore[reportArgumentType]
    wrapped = wrap(layers, config, randomized=False)
    config.init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "first")
    config.init_lora_weights = start
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "base_layer" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    x = input_of(layers[LINEAR])
    with torch.no_grad():
        expected = wrapped.base_model.model.get_submodule(LINEAR)(x)
    wrapped.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    for path in (tmp_path / "converted", file_of(tmp_path / "converted")):
        manager.load("style", path)
        (adapter,) = manager.lora_adapters
        with torch.no_grad():
            torch.testing.assert_close(adapter(x), expected, rtol=2e-5, atol=2e-5)
        manager.remove_all()


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
@pytest.mark.filterwarnings("ignore")
def test_a_beginning_that_leaves_the_base(start: Any, manager: SDLoraManager, tmp_path: Path) -> None:
    layers = layers_like(manager.target, LINEAR)
    wrapped = wrap(layers, LoraConfig(r=2, target_modules=[LINEAR], init_lora_weights=start))
    wrapped.save_pretrained(tmp_path)
    manager.load("style", tmp_path)
    x, (adapter,) = input_of(layers[LINEAR]), manager.lora_adapters
    with torch.no_grad():
        expected = wrapped.base_model.model.get_submodule(LINEAR)(x)
        torch.testing.assert_close(adapter(x), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("feeding", [[], ["ff.net.2", "proj_in"], ["conv1"], rf".*(attn1.to_q|{SQUARE_CONV})"], ids=str)
def test_ia3_of_parts_of_feed_forward_layers(feeding: Any, manager: SDLoraManager, tmp_path: Path) -> None:
    names = [LINEAR, SQUARE, CONV, SQUARE_CONV]
    targets: Any = ".*(ff.net.2|to_q|conv1|proj_in)" if isinstance(feeding, str) else [*names, *feeding]
    layers = layers_like(manager.target, *names)
    wrapped = wrap(layers, IA3Config(target_modules=targets, feedforward_modules=feeding))
    wrapped.save_pretrained(tmp_path)
    for path in (tmp_path, file_of(tmp_path)):
        manager.load("style", path)
        adapters = {id(adapter.target): adapter for adapter in manager.lora_adapters}
        for name, layer in layers.items():
            x = input_of(layer)
            with torch.no_grad():
                expected = wrapped.base_model.model.get_submodule(name)(x)
                torch.testing.assert_close(adapters[id(layer)](x), expected, rtol=2e-5, atol=2e-5)
        manager.remove_all()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("OFT", OFTConfig(r=0, oft_block_size=4, target_modules=[SQUARE])),
        ("VERA", VeraConfig(r=2, target_modules=[SQUARE])),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_kinds_that_are_not_supported(kind: str, config: Any, model: StableDiffusion_1, tmp_path: Path) -> None:
    wrap(layers_like(model, SQUARE), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"adapter_config.json: peft_type '{kind}' is not supported, expected one of"):
        inspect_lora(tmp_path, model)
