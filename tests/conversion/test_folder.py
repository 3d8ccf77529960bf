"""Which files of a folder are read."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.folder import weight_files

UNET = "diffusion_pytorch_model"


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def chosen(folder: Path, variant: str | None = None) -> list[str]:
    return [file.name for file in weight_files(folder, variant)]


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        ([f"{UNET}.safetensors", f"{UNET}.fp16.safetensors", f"{UNET}.bin"], None, f"{UNET}.safetensors"),
        ([f"{UNET}.safetensors", f"{UNET}.fp16.safetensors"], "fp16", f"{UNET}.fp16.safetensors"),
        ([f"{UNET}.fp16.safetensors", f"{UNET}.fp16.bin"], None, f"{UNET}.fp16.safetensors"),
        ([f"{UNET}.fp16.safetensors", f"{UNET}.non_ema.safetensors"], None, f"{UNET}.fp16.safetensors"),
        ([f"{UNET}.bf16.safetensors", f"{UNET}.non_ema.safetensors"], None, f"{UNET}.bf16.safetensors"),
        ([f"{UNET}.non_ema.safetensors"], None, f"{UNET}.non_ema.safetensors"),
        ([f"{UNET}.bin", f"{UNET}.fp16.safetensors"], None, f"{UNET}.bin"),
        (["model.safetensors", "pytorch_model.bin", "config.json"], None, "model.safetensors"),
        (["pytorch_model.bin", "config.json"], None, "pytorch_model.bin"),
        (["anything.safetensors", "readme.md"], None, "anything.safetensors"),
        (["anything.safetensors", "anything.ckpt"], None, "anything.safetensors"),
        (["anything.pth"], None, "anything.pth"),
    ],
)
def test_one_file_is_chosen(tmp_path: Path, names: list[str], variant: str | None, expected: str) -> None:
    assert chosen(fill(tmp_path, *names), variant) == [expected]


@pytest.mark.parametrize(
    ("names", "variant", "message"),
    [
        ([f"{UNET}.safetensors"], "fp16", r"has no variant 'fp16', expected one of \(none\)"),
        ([f"{UNET}.a.safetensors", f"{UNET}.b.safetensors"], None, "has several variants, name one of them: a, b"),
        (["a.safetensors", "b.safetensors"], None, "has several files, name one: a.safetensors, b.safetensors"),
        (["config.json"], None, "has no file of weights"),
        (["model_index.json"], None, "is the folder of a pipeline: name one of its models"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(
    tmp_path: Path, names: list[str], variant: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weight_files(fill(tmp_path, *names), variant)


def shards(folder: Path, variant: str = "") -> Path:
    infix = f".{variant}" if variant else ""
    names = [f"{UNET}{infix}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        safetensors.torch.save_file({f"w{i}": torch.full((2,), float(i))}, folder / name)
    index = folder / f"{UNET}.safetensors.index{infix}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"w0": names[0], "w1": names[1]}}))
    return index


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_are_one_checkpoint(tmp_path: Path, variant: str) -> None:
    index = shards(tmp_path, variant)
    for path in (tmp_path, index):
        with Checkpoint(path) as checkpoint:
            assert len(checkpoint.files) == 2
            assert {key: checkpoint.read(key).tolist() for key in checkpoint} == {"w0": [0, 0], "w1": [1, 1]}
            assert checkpoint.place("w0") < checkpoint.place("w1")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / f"{UNET}-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names a file that is missing: .*-00002-of-00002"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no index of shards"),
        ("{}", "is no index of shards"),
        ("no json", "is no index of shards"),
        ('{"weight_map": {"w": "../secret.safetensors"}}', "names a file that is not next to it: '../secret"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path)


def test_a_key_in_two_shards_is_an_error(tmp_path: Path) -> None:
    shards(tmp_path)
    safetensors.torch.save_file({"w0": torch.ones(1)}, tmp_path / f"{UNET}-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="has the key 'w0' twice, the second time in"):
        Checkpoint(tmp_path)
