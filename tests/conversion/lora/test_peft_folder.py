"""A folder that is written for PEFT does the same in PEFT, and holds nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Generator, Tensor

sys.path.append(str(Path(__file__).parents[2] / "parity"))

import checkpoints

from refiners.conversion.lora import inspect_lora
from refiners.conversion.lora.tools import convert_lora
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.lora import main

WRITTEN = {"adapter_config.json", "adapter_model.safetensors"}
LAYERS = {
    "unet": r"mid_block.*(attn1|conv1|proj_in|ff\.net\.2)|conv_in",
    "text_encoder": r"layers\.[01]\.(self_attn|mlp)",
}
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}

Write = Callable[..., Path]
Compare = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_folder(tmp_path_factory.mktemp("model"), checkpoints.small(checkpoints.SD15))


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion_1:
    return StableDiffusion_1.from_pretrained(folder)


def theirs(folder: Path, network: str) -> Any:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    kind = diffusers.UNet2DConditionModel if network == "unet" else transformers.CLIPTextModel
    return kind.from_pretrained(folder / network, dtype=torch.float32).eval()


@pytest.fixture
def write(folder: Path, tmp_path: Path) -> Write:
    """Write a file as kohya does, of a network or of all, with small numbers."""

    def write_file(kind: str = "LoRA", *networks: str) -> Path:
        generator, tensors = Generator().manual_seed(0), dict[str, Tensor]()
        for network in networks or LAYERS:
            found = theirs(folder, network).named_modules()
            layers = {name: module for name, module in found if hasattr(module, "weight")}
            chosen = [name for name in layers if re.search(LAYERS[network], name)]
            for number, name in enumerate(chosen):
                weight = layers[name].weight.detach()
                rank, ones = 2 + (number % 3 if kind == "unequal" else 0), (1,) * (weight.ndim - 2)
                key = PREFIXES[network] + name.replace(".", "_")
                tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator)
                tensors[f"{key}.lora_up.weight"] = 0.05 * torch.randn(len(weight), rank, *ones, generator=generator)
                tensors[f"{key}.alpha"] = torch.tensor(1.0 + (number % 2 if kind == "unequal" else 0))
                if kind == "DoRA":
                    lengths = weight.flatten(1).norm(dim=1) * (1 + torch.rand(len(weight), generator=generator))
                    tensors[f"{key}.dora_scale"] = lengths.view(-1, 1, *ones)
        path = tmp_path / f"{kind}.safetensors"
        save_to_safetensors(path, tensors, {"modelspec.title": kind})
        return path

    return write_file


@torch.no_grad()
def run_theirs(network: Any) -> Tensor:
    generator = Generator().manual_seed(1)
    if hasattr(network, "conv_in"):
        text = torch.randn(1, 77, network.config.cross_attention_dim, generator=generator)
        return network(torch.randn(1, 4, 8, 8, generator=generator), 501, text).sample
    return network(CLIPTokenizer()("a cat")).last_hidden_state


@torch.no_grad()
def run_ours(model: StableDiffusion_1, network: str) -> Tensor:
    generator = Generator().manual_seed(1)
    if network == "unet":
        width = model.clip_text_encoder.embedding_dim
        model.unet.set_clip_text_embedding(torch.randn(1, 77, width, generator=generator))
        model.unet.set_timestep(torch.tensor([501]))
        return model.unet(torch.randn(1, 4, 8, 8, generator=generator))
    return model.clip_text_encoder("a cat")


@pytest.mark.parametrize("way", ["convert", "save"])
@pytest.mark.parametrize("kind", ["LoRA", "unequal", "DoRA"])
@pytest.mark.parametrize("network", LAYERS)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_does_the_same(
    network: str, kind: str, way: str, folder: Path, manager: SDLoraManager, write: Write, compare: Compare
) -> None:
    source, out = write(kind, network), write(kind, network).with_name("out")
    before = run_ours(manager.target, network)
    manager.load("style", source)
    expected = run_ours(manager.target, network)
    assert not torch.allclose(expected, before, rtol=0.01, atol=0.01)
    if way == "convert":
        convert_lora(source, out, format="peft", checkpoint=folder)
    else:
        manager.save("style", out, format="peft", metadata={"author": "me"})
    assert {path.name for path in out.iterdir()} == WRITTEN
    manager.remove_all()
    compare("theirs", run_theirs(PeftModel.from_pretrained(theirs(folder, network), out)), expected)
    manager.load("style", out)
    compare("ours", run_ours(manager.target, network), expected, 1e-6, 1e-6)
    report = inspect_lora(out, manager.target)
    assert report.plan.is_whole and report.format.startswith("PEFT")


def test_what_is_written_is_what_was_there(folder: Path, write: Write, tmp_path: Path) -> None:
    source, out, back = write("unequal", "unet"), tmp_path / "out", tmp_path / "back.safetensors"
    written = convert_lora(source, out, format="peft", checkpoint=folder)
    assert str(written).startswith(f"{out}: ") and "in the format peft, rank 2 to 4" in str(written)
    convert_lora(out, back, format="kohya", checkpoint=folder)
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and len(config["target_modules"]) == len(before) / 3


def test_several_networks(folder: Path, write: Write, manager: SDLoraManager, tmp_path: Path) -> None:
    source, out = write(), tmp_path / "out"
    message = "a folder of PEFT is for one network, and there are updates of text_encoder, unet"
    with pytest.raises(ValueError, match=message):
        convert_lora(source, out, format="peft", checkpoint=folder)
    manager.load("style", source)
    with pytest.raises(ValueError, match=message):
        manager.save("style", out, format="peft")
    assert [path.name for path in tmp_path.iterdir()] == ["LoRA.safetensors"]


def test_magnitudes_of_some(folder: Path, write: Write, tmp_path: Path) -> None:
    tensors = load_file(write("DoRA", "unet"))
    first = next(key for key in tensors if key.endswith("dora_scale"))
    save_to_safetensors(tmp_path / "a.safetensors", {key: tensors[key] for key in tensors if key != first})
    with pytest.raises(ValueError, match="in a folder of PEFT all updates have magnitudes or none, and unet"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "out", format="peft", checkpoint=folder)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_replaced_and_those_that_are_not(folder: Path, write: Write, tmp_path: Path) -> None:
    source, out = write("LoRA", "unet"), tmp_path / "out"
    out.mkdir()
    convert_lora(source, out, format="peft", checkpoint=folder)
    before = (out / "adapter_config.json").read_text()
    convert_lora(write("unequal", "unet"), out, format="peft", checkpoint=folder)
    assert (out / "adapter_config.json").read_text() != before
    assert {path.name for path in out.iterdir()} == WRITTEN
    (out / "README.md").write_text("mine")
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    cases = [
        (source, out, "destination '.*out' holds other things, such as 'README.md': give a folder of its own"),
        (source, tmp_path / "no" / "out", "destination must be in a folder that exists"),
        (source, tmp_path / "out.safetensors", "destination must be a folder for the format 'peft', got"),
        (source, out / "README.md", "destination must be a folder for the format 'peft', and '.*README.md' is a file"),
    ]
    for read, destination, message in cases:
        with pytest.raises(ValueError, match=message):
            convert_lora(read, destination, format="peft", checkpoint=folder)
    (out / "README.md").unlink()
    for read in (out, out / "adapter_model.safetensors"):
        with pytest.raises(ValueError, match="destination must be another file than what is read"):
            convert_lora(read, out, format="peft", checkpoint=folder)
    del content["README.md"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == content
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_written_if_something_fails(
    folder: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write("LoRA", "unet"), tmp_path / "out"
    convert_lora(source, out, format="peft", checkpoint=folder)
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("write_text", "rename"):
        kept = getattr(Path, name)

        def fail(path: Path, *arguments: Any, kept: Any = kept, **options: Any) -> Any:
            if path.suffix == ".old" or str(path).startswith(str(out)):
                return kept(path, *arguments, **options)
            raise OSError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail)
            with pytest.raises(OSError, match="the disk is full"):
                convert_lora(write("unequal", "unet"), out, format="peft", checkpoint=folder)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == content
        assert not list(tmp_path.glob(".*"))


def test_the_command(folder: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(write("LoRA", "unet")), str(tmp_path / "out")
    options = ["convert", source, "--checkpoint", str(folder), "--out", out]
    with pytest.raises(SystemExit):
        main([*options, "--format", "kohya"])
    assert "argument --out: expected a name that ends in .safetensors" in capsys.readouterr().err
    assert main([*options, "--format", "peft"]) == 0
    assert {path.name for path in Path(out).iterdir()} == WRITTEN
