"""What is made of the options before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from PIL import Image

import refiners.generate.setup as setup
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, ModelPredictionType, SolverParams
from refiners.generate import main

FolderOf = Callable[[str], Path]


def run(checkpoint: Path, out: Path, *more: str) -> int:
    options = ["--prompt", "a cat", "--out", str(out), "--size", "64x64", "--steps", "2", "--seed", "3"]
    return main(["--checkpoint", str(checkpoint), *options, *more])


@pytest.fixture
def folder(folder_of: FolderOf, tmp_path: Path) -> Path:
    """Give a checkpoint that may be changed."""
    return copytree(folder_of("SD15"), tmp_path / "model")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Give what stands after the prefix of the only line."""
    captured = capsys.readouterr()
    prefix = "python -m refiners generate: error: "
    assert captured.out == "" and captured.err.startswith(prefix) and captured.err.count("\n") == 1
    return captured.err.removeprefix(prefix).rstrip("\n")


def test_a_variant_is_taken(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        tensors = load_from_safetensors(folder / f"{name}.safetensors")
        save_to_safetensors(folder / f"{name}.other.safetensors", {key: 0.9 * x for key, x in tensors.items()})
    assert run(folder, tmp_path / "plain.png") == run(folder, tmp_path / "other.png", "--variant", "other") == 0
    expected = StableDiffusion_1.from_pretrained(folder, variant="other")
    image = expected.generate("a cat", size=(64, 64), num_steps=2, seed=3)[0]
    plain, other = (Image.open(tmp_path / name) for name in ("plain.png", "other.png"))
    assert other.tobytes() == image.tobytes() != plain.tobytes()
    capsys.readouterr()
    assert run(folder, tmp_path / "image.png", "--variant", "absent") == 2
    assert "has no variant 'absent', expected one of other, (none)" in one_line(capsys)


def test_what_the_unet_predicts_can_be_told(folder_of: FolderOf, tmp_path: Path) -> None:
    assert run(folder_of("SD15"), tmp_path / "image.png", "--prediction", "velocity", "--trailing") == 0
    params = SolverParams(
        model_prediction_type=ModelPredictionType.VELOCITY,
        timesteps_spacing="trailing_rounded",  # pyright: ignore[reportArgumentType]
    )
    model = StableDiffusion_1.from_pretrained(folder_of("SD15"), solver=DPMSolver(2, params=params))
    expected = model.generate("a cat", size=(64, 64), num_steps=2, seed=3)[0]
    assert Image.open(tmp_path / "image.png").tobytes() == expected.tobytes()


def test_without_guidance_the_prompt_is_computed_alone(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    forward = StableDiffusion_1.forward

    def call(self: StableDiffusion_1, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(self.classifier_free_guidance)
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(StableDiffusion_1, "forward", call)
    for scale in ("0", "1", "2"):
        assert run(folder_of("SD15"), tmp_path / f"{scale}.png", "--scale", scale) == 0
    assert calls == [False, False, False, False, True, True]
    images = [Image.open(tmp_path / f"{scale}.png").tobytes() for scale in (0, 1, 2)]
    assert images[0] == images[1] != images[2]
    model = StableDiffusion_1.from_pretrained(folder_of("SD15"))
    expected = model.generate("a cat", size=(64, 64), num_steps=2, seed=3, condition_scale=1.0)[0]
    one, other = (torch.tensor(list(image)) for image in (images[1], expected.tobytes()))
    assert (one - other).abs().max() <= 1


def test_a_prediction_that_is_not_known(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "foo"}))
    assert run(folder, tmp_path / "image.png", "--solver", "euler") == 2
    assert one_line(capsys) == f"argument --checkpoint: {folder} predicts by 'foo', for which there is no solver"


def test_a_checkpoint_that_is_not_whole_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_from_safetensors(path)
    del tensors["decoder.conv_in.bias"], tensors["encoder.conv_in.bias"]
    save_to_safetensors(path, tensors | {"what": torch.zeros(1)})
    assert run(folder, tmp_path / "image.png") == 2
    assert one_line(capsys) == (
        f"argument --checkpoint: {folder / 'vae'} holds no whole autoencoder (diffusers): 2 missing, 1 left over;"
        f" python -m refiners inspect {folder} says more"
    )


def test_a_lack_of_memory_for_the_model_is_one_line(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(setup, "load_pretrained", fail)
    assert run(folder_of("SD15"), tmp_path / "image.png") == 2
    assert one_line(capsys) == "there is not enough memory for the model: see --dtype, --device"
