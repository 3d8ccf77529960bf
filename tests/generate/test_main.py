"""The command that makes images: the picture that the models make, and one-line errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_1_Inpainting, StableDiffusion_XL
from refiners.generate import main

FolderOf = Callable[[str], Path]
SMALL = ["--size", "72x64", "--steps", "3"]


def run(folder: Path, out: Path, *more: str) -> int:
    return main(["--checkpoint", str(folder), "--prompt", "a cat", "--out", str(out), *SMALL, *more])


@pytest.mark.parametrize("kind, make", [("SD15", StableDiffusion_1), ("SDXL", StableDiffusion_XL)])
def test_the_picture_is_that_of_the_model(kind: str, make: type, folder_of: FolderOf, tmp_path: Path) -> None:
    folder, out = folder_of(kind), tmp_path / "image.png"
    assert run(folder, out, "--seed", "7", "--negative", "bad", "--scale", "4") == 0
    model = make.from_pretrained(folder)
    expected = model.generate("a cat", "bad", size=(64, 72), num_steps=3, seed=7, condition_scale=4.0)[0]
    assert Image.open(out).tobytes() == expected.tobytes()


def test_several_pictures_of_consecutive_seeds(folder_of: FolderOf, tmp_path: Path, capsys) -> None:
    out = tmp_path / "image.png"
    assert run(folder_of("SD15"), out, "--seed", "5", "--count", "2") == 0
    paths = [out, tmp_path / "image-2.png"]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    for path, seed in zip(paths, (5, 6)):
        alone = tmp_path / "alone.png"
        assert run(folder_of("SD15"), alone, "--seed", str(seed)) == 0
        one, other = (torch.tensor(list(Image.open(each).tobytes())) for each in (path, alone))
        assert (one - other).abs().max() <= 1


def test_a_seed_is_chosen_and_told(folder_of: FolderOf, tmp_path: Path, capsys) -> None:
    out, again = tmp_path / "image.png", tmp_path / "again.png"
    run(folder_of("SD15"), out)
    seed = json.loads(Image.open(out).text["refiners"])["seed"]
    assert capsys.readouterr().err.strip().endswith(f", seed {seed}")
    run(folder_of("SD15"), again, "--seed", str(seed))
    assert Image.open(again).tobytes() == Image.open(out).tobytes()


def test_previews(folder_of: FolderOf, tmp_path: Path) -> None:
    out = tmp_path / "image.png"
    run(folder_of("SD15"), out, "--seed", "1", "--preview", "2")
    preview = Image.open(tmp_path / "image.preview.png")
    assert preview.size == (72, 64) and preview.tobytes() != Image.open(out).tobytes()


def test_from_an_image(folder_of: FolderOf, tmp_path: Path) -> None:
    image, out = Image.effect_noise((90, 80), 60).convert("RGB"), tmp_path / "out.png"
    image.save(tmp_path / "in.png")
    assert run(folder_of("SD15"), out, "--seed", "2", "--init", str(tmp_path / "in.png"), "--strength", "0.5") == 0
    model = StableDiffusion_1.from_pretrained(folder_of("SD15"))
    expected = model.generate("a cat", size=(64, 72), num_steps=3, seed=2, init_image=image, strength=0.5)[0]
    assert Image.open(out).tobytes() == expected.tobytes()


def test_the_size_is_that_of_the_image(folder_of: FolderOf, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (66, 90)).save(tmp_path / "in.jpg", exif=turned)
    arguments = ["--checkpoint", str(folder_of("SD15")), "--prompt", "a", "--steps", "2", "--seed", "1"]
    assert main([*arguments, "--init", str(tmp_path / "in.jpg"), "--out", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (88, 64)


def test_into_a_mask(folder_of: FolderOf, tmp_path: Path) -> None:
    image, mask = Image.effect_noise((72, 64), 60).convert("RGB"), Image.new("L", (72, 64))
    mask.paste(255, (8, 8, 32, 32))
    image.save(tmp_path / "in.png")
    mask.save(tmp_path / "mask.png")
    pictures = ["--init", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    assert run(folder_of("SD15_INPAINTING"), tmp_path / "out.png", "--seed", "2", *pictures) == 0
    model = StableDiffusion_1_Inpainting.from_pretrained(folder_of("SD15_INPAINTING"))
    with torch.no_grad():
        model.set_inpainting_conditions(image, mask)
    expected = model.generate("a cat", size=(64, 72), num_steps=3, seed=2)[0]
    assert Image.open(tmp_path / "out.png").tobytes() == expected.tobytes()


def test_only_an_option_downloads(folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(folder_of("SD15"))

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(SystemExit, match="2"):
        run(Path("owner/name"), tmp_path / "out.png")
    assert not asked
    assert run(Path("owner/name@v1"), tmp_path / "out.png", "--download", "--seed", "1") == 0
    assert asked[0][:2] == ("owner/name", "v1") and all("bin" not in pattern for pattern in asked[0][2])
    assert json.loads(Image.open(tmp_path / "out.png").text["refiners"])["checkpoint"] == "owner/name@v1"
    capsys.readouterr()
    assert run(Path("name"), tmp_path / "other.png", "--download") == 2
    assert "repository must be owner/name or owner/name@revision, got 'name'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["image.png", "image.preview.png"])
def test_what_cannot_be_written_leaves_what_was_there(
    name: str, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = tmp_path / "image.png"
    (tmp_path / name).write_bytes(b"before")
    save = Image.Image.save

    def fill_the_disk(self: Image.Image, path: Path, **options: Any) -> None:
        save(self, path, **options)
        if name in path.name:
            path.write_bytes(path.read_bytes()[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    assert run(folder_of("SD15"), out, "--seed", "1", "--preview", "1") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "python -m refiners generate: error: argument --out: [Errno 28] No space left on device"
    assert (tmp_path / name).read_bytes() == b"before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_link_is_written_through(folder_of: FolderOf, tmp_path: Path) -> None:
    link, target = tmp_path / "link.png", tmp_path / "target.png"
    link.symlink_to(target)
    assert run(folder_of("SD15"), link, "--seed", "1") == 0
    with Image.open(target) as picture:
        assert link.is_symlink() and picture.size == (72, 64)


def test_a_lack_of_memory_is_one_line(folder_of: FolderOf, tmp_path: Path, capsys) -> None:
    folder, out = folder_of("SD15"), tmp_path / "image.png"
    argv = [
        "--checkpoint",
        str(folder),
        "--prompt",
        "a",
        "--out",
        str(out),
        "--steps",
        "1",
        "--size",
        "8000000x8000000",
    ]
    assert main(argv) == 2
    expected = (
        "python -m refiners generate: error: there is not enough memory for 1 of 8000000x8000000 pixels: see --size,"
        " --tiled, --count, --dtype"
    )
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert not out.exists()


def test_other_errors_are_not_taken_for_it(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(StableDiffusion_1, "generate", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(folder_of("SD15"), tmp_path / "image.png")


def test_a_device_that_computes_nothing_is_refused(folder_of: FolderOf, tmp_path: Path, capsys) -> None:
    assert run(folder_of("SD15"), tmp_path / "image.png", "--device", "meta") == 2
    assert capsys.readouterr().err == "python -m refiners generate: error: argument --device: 'meta' computes nothing\n"


def test_a_checkpoint_is_no_lora(folder_of: FolderOf, tmp_path: Path, capsys) -> None:
    path = folder_of("SD15") / "unet" / "diffusion_pytorch_model.safetensors"
    assert run(folder_of("SD15"), tmp_path / "image.png", "--lora", str(path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m refiners generate: error: argument --lora:") and str(path) in error


def test_what_does_not_fit_is_one_line(folder_of: FolderOf, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "in.png"
    Image.new("RGB", (8, 8)).save(picture)
    damaged = tmp_path / "damaged.jpg"
    Image.effect_noise((64, 64), 90).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-500])
    cases = [
        (folder_of("SD15"), ["--device", "nonsense"], "argument --device: 'nonsense' is not to be had here"),
        (
            folder_of("SD15"),
            ["--init", str(picture), "--mask", str(picture)],
            "is no checkpoint that paints into a mask",
        ),
        (folder_of("SD15_INPAINTING"), [], "paints into a mask: give --init and --mask"),
        (folder_of("SD15") / "unet", [], "has a U-Net, but lacks what a StableDiffusion_1 needs besides: lda"),
        (folder_of("SD15") / "scheduler", [], "scheduler"),
        (
            folder_of("SD15"),
            ["--init", __file__],
            f"argument --init: cannot read '{__file__}' as a picture: its format is not known",
        ),
        (folder_of("SD15"), ["--init", str(damaged)], "truncated"),
        (
            folder_of("SD15"),
            ["--solver", "lcm", "--steps", "60"],
            "argument --steps: the solver lcm takes at most 50 steps, got 60",
        ),
    ]
    for folder, argv, message in cases:
        assert run(folder, tmp_path / "out.png", *argv) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.startswith("python -m refiners generate: error: argument ")
        assert captured.err.count("\n") == 1
        assert captured.out == "" and not (tmp_path / "out.png").exists()
