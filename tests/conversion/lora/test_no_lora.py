"""What is no LoRA: a checkpoint given as one is told from a file that nothing is known of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from refiners.conversion import to_diffusers
from refiners.conversion.formats import our_format
from refiners.conversion.lora import inspect_lora
from refiners.conversion.naming.unet import LDMUNet, unet_names
from refiners.fluxion.utils import load_tensors, save_to_safetensors
from refiners.foundationals.clip import CLIPTextEncoder
from refiners.foundationals.latent_diffusion import SD1Autoencoder, SD1UNet, StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager


@pytest.fixture(scope="module")
def model() -> StableDiffusion_1:
    unet = SD1UNet(4, channels=(8, 8, 8, 8), num_groups=4, text_embedding_dim=8)
    texts = CLIPTextEncoder(embedding_dim=8, num_layers=1, num_attention_heads=2, feedforward_dim=8)
    return StableDiffusion_1(unet, SD1Autoencoder(channels=(8, 8, 8, 8), num_groups=4), texts)


@pytest.fixture(scope="module")
def single_file(model: StableDiffusion_1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the names of the original model."""
    tensors = model.unet.state_dict()
    ours = our_format("unet_sd1")
    layout = ours.layout({key: tensor.shape for key, tensor in tensors.items()})
    renamed: dict[str, Tensor] = {}
    for mine, theirs in zip(ours.names(layout), unet_names(layout, LDMUNet), strict=True):
        for kind in ("weight", "bias"):
            if mine.key(kind) in tensors:
                renamed[f"model.diffusion_model.{theirs.key(kind)}"] = tensors[mine.key(kind)]
    path = tmp_path_factory.mktemp("checkpoint") / "single.safetensors"
    save_to_safetensors(path, renamed)
    return path


@pytest.fixture(scope="module")
def folder(model: StableDiffusion_1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is looked at of a checkpoint as diffusers writes it."""
    root = tmp_path_factory.mktemp("folder")
    (root / "model_index.json").write_text("{}")
    (root / "vae").mkdir()
    weights = to_diffusers(model.lda.state_dict())
    save_to_safetensors(root / "vae" / "diffusion_pytorch_model.safetensors", weights)
    return root


def refused(model: StableDiffusion_1, source: Path | dict[str, Tensor]) -> list[str]:
    """Give what each way of attaching or inspecting a LoRA says."""
    manager, messages = SDLoraManager(model), list[str]()
    add = manager.load if isinstance(source, Path) else manager.add_loras
    for call in (lambda: add("a", source), lambda: add("a", source, partial=True), lambda: inspect_lora(source)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the caller looks)
            call()
        messages.append(str(caught.value))
    assert manager.names == []
    return messages


def test_a_whole_checkpoint_is_told(model: StableDiffusion_1, single_file: Path) -> None:
    for message in refused(model, single_file):
        assert message.startswith(
            f"{single_file} is a checkpoint, no LoRA: from_pretrained of a model loads it; it holds"
        )
        assert "unet_sd1 (" in message and "; its first keys are " in message
    for message in refused(model, load_tensors(single_file)):
        assert message.startswith("the state dict is a checkpoint, no LoRA: from_pretrained")


def test_no_tensor_of_a_checkpoint_is_read(
    model: StableDiffusion_1, single_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("refiners.conversion.checkpoint.Checkpoint.read", fail)
    with pytest.raises(ValueError, match="is a checkpoint, no LoRA"):
        SDLoraManager(model).load("a", single_file)


def test_a_folder_of_a_checkpoint_is_told(model: StableDiffusion_1, folder: Path) -> None:
    expected = f"{folder} is a checkpoint, no LoRA: from_pretrained of a model loads it"
    assert refused(model, folder) == [expected] * 3


def test_the_weights_of_one_network_are_told(model: StableDiffusion_1, folder: Path) -> None:
    for message in refused(model, folder / "vae"):
        assert "is no LoRA, but the weights of a whole network; it holds autoencoder (" in message
    for message in refused(model, dict(model.unet.state_dict())):
        assert "is a checkpoint, no LoRA" in message and "unet_sd1 (" in message


def test_other_files_are_told_as_before(model: StableDiffusion_1) -> None:
    for message in refused(model, {"a.bias": torch.zeros(2)}):
        assert message == (
            "the state dict holds no LoRA, nor another known update of layers; its first keys are a.bias"
        )
