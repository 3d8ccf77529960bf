"""What the options of the command that makes images accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiners.foundationals.latent_diffusion.solvers import ModelPredictionType
from refiners.generate.options import PREDICTIONS, SOLVERS, parse_options
from refiners.generate.solvers import SOLVERS as MADE

MISTAKES: dict[str, tuple[list[str], str]] = {
    "no file": (["--checkpoint", "nowhere"], "argument --checkpoint: there is no file or folder 'nowhere'"),
    "size": (
        ["--size", "60x64"],
        "argument --size: expected WIDTHxHEIGHT in multiples of 8, such as 512x768, got '60x64'",
    ),
    "steps": (["--steps", "0"], "argument --steps: expected a whole number of at least 1, got '0'"),
    "scale": (["--scale", "nan"], "argument --scale: expected a number of at least 0, got 'nan'"),
    "strength": (["--strength", "2"], "argument --strength: expected a number from 0 to 1, got '2'"),
    "strength alone": (["--strength", "0.5"], "argument --strength: needs --init, and no --mask"),
    "strength and mask": (
        ["--strength", "0.5", "--init", __file__, "--mask", __file__],
        "argument --strength: needs --init, and no --mask",
    ),
    "scale of a lora": (
        ["--lora", f"{__file__}:abc"],
        f"argument --lora: '{__file__}:abc' is no FILE:SCALE: expected a number from -10000 to 10000, got 'abc'",
    ),
    "mask": (["--mask", __file__], "argument --mask: needs --init, the image to paint into"),
    "lora": (["--lora", "nowhere:0.5"], "argument --lora: there is no file 'nowhere'"),
    "lora twice": (
        ["--lora", __file__, "--lora", f"{Path(__file__).parent / '..' / 'generate' / Path(__file__).name}:0.5"],
        "argument --lora: a file is given twice: give it once, with the sum of its scales",
    ),
    "nothing to attach in part": (["--partial"], "argument --partial: needs --lora, the files to attach in part"),
    "no picture": (["--out", "image.jpg"], "argument --out: expected a name that ends in .png, got 'image.jpg'"),
    "last seed": (
        ["--seed", str(2**64 - 1), "--count", "2"],
        "argument --seed: with --count 2, the last seed is more",
    ),
    "hub": (["--checkpoint", "owner/name"], "there is no file or folder 'owner/name'; --download takes it from the"),
    "negative without guidance": (
        ["--scale", "0", "--negative", "bad"],
        "argument --negative: without guidance, by --scale 0 or 1, it has no effect",
    ),
    "variant of a file": (
        ["--checkpoint", __file__, "--variant", "fp16"],
        f"argument --variant: '{__file__}' is one file; folders have variants",
    ),
    "prediction": (["--prediction", "foo"], "argument --prediction: invalid choice: 'foo'"),
    "unknown": (["--hopp"], "unrecognized arguments: --hopp"),
}


@pytest.mark.parametrize("argv, message", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line(argv: list[str], message: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--checkpoint", str(tmp_path), "--prompt", "a", *argv])
    error = capsys.readouterr().err
    assert error.startswith("python -m refiners generate: error: ") and error.count("\n") == 1
    assert message in error


def test_a_lora_may_have_a_scale_and_a_colon_in_its_name(tmp_path: Path) -> None:
    plain, other, colon = tmp_path / "a.safetensors", tmp_path / "c.safetensors", tmp_path / "b:2"
    for path in (plain, other, colon):
        path.touch()
    argv = ["--checkpoint", str(tmp_path), "--prompt", "a"]
    options = parse_options([*argv, "--lora", str(plain), "--lora", f"{other}:-0.5", "--lora", str(colon)])
    assert [(lora.path, lora.scale) for lora in options.lora] == [(plain, 1.0), (other, -0.5), (colon, 1.0)]


def test_no_guidance_is_one_scale(tmp_path: Path) -> None:
    argv = ["--checkpoint", str(tmp_path), "--prompt", "a", "--scale"]
    assert [parse_options([*argv, scale]).scale for scale in ("0", "0.5", "1")] == [1.0, 0.5, 1.0]


def test_names_are_those_of_the_library() -> None:
    assert list(SOLVERS) == list(MADE)
    assert set(PREDICTIONS) == {each.value for each in ModelPredictionType}
