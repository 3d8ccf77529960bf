"""The command that works on LoRA files: from files to a file, or one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from refiners import cli
from refiners.conversion.lora.tools import compose_loras, extract_lora, resize_lora
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import SD1UNet
from refiners.lora import main
from refiners.lora.options import ACTIONS, DTYPES, FORMATS, METHODS, PARTS

LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"
NORM = "DownBlocks.Chain_2.CLIPLCrossAttention.Chain_1.GroupNorm.weight"
PATH = "DownBlocks.Chain_2.CLIPLCrossAttention.Chain_1.Conv2d.weight"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        pair = {
            f"{LAYER}.lora_down.weight": torch.randn(4, 32, 1, 1),
            f"{LAYER}.lora_up.weight": torch.randn(32, 4, 1, 1),
        }
        save_to_safetensors(path, pair | {f"{LAYER}.alpha": torch.tensor(4.0)})
    return paths


def assert_same(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_convert(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "out.safetensors", tmp_path / "back.safetensors"
    more = ["--title", "A cat", "--trigger", "a cat", "--trigger", "fur", "--metadata", "author=me=you"]
    assert main(["convert", str(files[0]), "--format", "diffusers", "--out", str(out), *more]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n" and captured.err == f"{out}: 1 LoRA in the format diffusers, rank 4\n"
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert said == {
        "format": "pt",
        "modelspec.title": "A cat",
        "modelspec.trigger_phrase": "a cat, fur",
        "author": "me=you",
    }
    assert main(["convert", str(out), "--format", "kohya", "--out", str(back)]) == 0
    assert_same(files[0], back)


def test_resize(files: list[Path], tmp_path: Path) -> None:
    out, expected = tmp_path / "out.safetensors", tmp_path / "expected.safetensors"
    assert (
        main(["resize", str(files[0]), "--rank", "2", "--energy", "0.9", "--dtype", "float16", "--out", str(out)]) == 0
    )
    resize_lora(files[0], expected, rank=2, energy=0.9, dtype=torch.float16)
    assert_same(out, expected)


@pytest.mark.parametrize(
    "options", [{}, {"method": "svd", "rank": 3}, {"method": "dare", "rank": 3, "density": 0.5, "seed": 4}], ids=str
)
def test_compose(options: dict[str, object], files: list[Path], tmp_path: Path) -> None:
    out, expected = tmp_path / "out.safetensors", tmp_path / "expected.safetensors"
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["compose", f"{files[0]}:0.5", str(files[1]), *given, "--out", str(out)]) == 0
    compose_loras({files[0]: 0.5, files[1]: 1.0}, expected, **options)  # pyright: ignore[reportArgumentType]
    assert_same(out, expected)


def test_extract(tmp_path: Path) -> None:
    state = SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=32).state_dict()
    base, tuned, out, expected = (tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "out", "expected"))
    save_to_safetensors(base, state)
    save_to_safetensors(tuned, {**state, PATH: torch.randn_like(state[PATH])})
    options = ["--base", str(base), "--tuned", str(tuned), "--rank", "2", "--only", "unet"]
    assert main(["extract", *options, "--out", str(out)]) == 0
    extract_lora(base, tuned, expected, rank=2)
    assert_same(out, expected)
    share = ["extract", "--base", str(base), "--tuned", str(tuned), "--energy", "0.5", "--out", str(out)]
    assert main(share) == 0
    extract_lora(base, tuned, expected, energy=0.5)
    assert_same(out, expected)


def test_mistakes_are_one_line(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, out = str(files[0]), ["--out", str(tmp_path / "out.safetensors")]
    cases: list[tuple[list[str], str, str]] = [
        (["shrink"], "", "expected one of convert, extract, resize, compose, got 'shrink'"),
        (["convert", a, *out], " convert", "the following arguments are required: --format"),
        (["convert", a, "--format", "comfy", *out], " convert", "invalid choice: 'comfy'"),
        (["convert", "none", "--format", "kohya", *out], " convert", "there is no file or folder 'none'"),
        (["convert", a, "--format", "kohya", "--out", "x.pt"], " convert", "expected a name that ends in .safetensors"),
        (["convert", a, "--format", "kohya", "--out", a], " convert", "argument --out: expected another file"),
        (["convert", a, "--format", "kohya", "--metadata", "x", *out], " convert", "expected KEY=TEXT, got 'x'"),
        (["resize", a, *out], " resize", "give --rank or --energy, or both"),
        (["extract", "--base", a, "--tuned", a, *out], " extract", "give --rank or --energy, or both"),
        (["resize", a, "--energy", "0", *out], " resize", "expected a number above 0, got '0'"),
        (
            ["resize", a, "--rank", "2", "--device", "moon", *out],
            " resize",
            "argument --device: 'moon' is not to be had",
        ),
        (
            ["resize", a, "--rank", "2", "--device", "meta", *out],
            " resize",
            "argument --device: 'meta' computes nothing",
        ),
        (["compose", f"{a}:x", *out], " compose", "is no FILE:SCALE: expected a number"),
        (["compose", a, a, *out], " compose", "a file is given twice"),
        (["compose", a, "--rank", "2", *out], " compose", "argument --rank: has no use with --method cat"),
        (["compose", a, "--method", "ties", "--rank", "2", *out], " compose", "argument --density: is needed with"),
    ]
    for argv, action, message in cases:
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        assert code == 2 and captured.out == "" and captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith(f"python -m refiners lora{action}: error: ") and message in captured.err
    assert not Path(out[1]).exists()


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    path = tmp_path / "unet.safetensors"
    save_to_safetensors(path, SD1UNet(4, channels=(64, 64, 64, 64), text_embedding_dim=32).state_dict())
    return path


@pytest.mark.parametrize("action", ["convert", "resize", "compose"])
def test_what_does_not_fit_names_the_command_that_lists_it(
    action: str, files: list[Path], unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"convert": ["--format", "diffusers"], "resize": ["--rank", "2"], "compose": []}[action]
    out = ["--checkpoint", str(unet), "--out", str(tmp_path / "out.safetensors")]
    assert main([action, str(files[1]), *more, *out]) == 2
    error = capsys.readouterr().err.rstrip("\n")
    command = f"inspect {files[1]} --checkpoint {unet}"
    rest = ", --partial writes the rest" if action == "convert" else ""
    assert "1 of 1 updates are not understood" in error and error.endswith(
        f"python -m refiners {command} says more{rest}"
    )
    assert cli.main(command.split()) == 1
    assert "shapes do not fit the layer's weight, which is (64, 64, 1, 1)" in capsys.readouterr().out


def test_errors_have_the_words_of_the_options(
    files: list[Path], unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loha = {f"{LAYER}.hada_w{i}_{j}": torch.ones(32, 32) for i in "12" for j in "ab"}
    save_to_safetensors(tmp_path / "loha.safetensors", loha)
    several = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    pair = {f"{several}.lora_down.weight": torch.ones(2, 8), f"{several}.lora_up.weight": torch.ones(8, 2)}
    save_to_safetensors(tmp_path / "several.safetensors", pair)
    changed = {NORM: torch.full((64,), 3.0), PATH: torch.ones(64, 64, 1, 1)}
    save_to_safetensors(tmp_path / "norms.safetensors", {**load_file(unet), **changed})
    a, b, c = (str(tmp_path / f"{name}.safetensors") for name in ("loha", "several", "norms"))
    compared = ["extract", "--base", str(unet), "--rank", "2", "--tuned"]
    cases: list[tuple[list[str], str]] = [
        (["resize", a, "--rank", "2"], "python -m refiners lora compose --method svd makes pairs of matrices of it"),
        (["compose", a], "use another --method than cat"),
        (["compose", a, "--method", "svd", "--rank", "2"], "has the shape of the weight: give --checkpoint"),
        (["convert", b, "--format", "kohya"], "has names of layers of several models: give --checkpoint"),
        ([*compared, c, "--norms", "--format", "diffusers"], "--norms needs --format kohya"),
        ([*compared, str(files[0])], "--base and --tuned must both have unet or text_encoder"),
    ]
    for argv, message in cases:
        assert main([*argv, "--out", str(tmp_path / "out.safetensors")]) == 2
        assert message in capsys.readouterr().err
    assert main([*compared, c, "--out", str(tmp_path / "out.safetensors")]) == 0
    assert "differences of norms: --norms writes them" in capsys.readouterr().err


def test_an_interruption_leaves_what_was_there(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    before = set(tmp_path.iterdir())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refiners.conversion.safetensors_writer._write", interrupt)
    assert cli.main(["lora", "resize", str(files[0]), "--rank", "2", "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith("python -m refiners lora: interrupted\n")
    assert out.read_bytes() == b"before" and set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("action", ["", *ACTIONS])
def test_help_needs_no_torch(action: str) -> None:
    program = (
        "import sys; from refiners.cli import main\n"
        f"try: main(['lora', *{[action] if action else []}, '--help'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: python -m refiners lora") and run.stdout.endswith("\n0 False\n")


def test_choices_are_those_of_the_functions() -> None:
    from typing import get_args

    from refiners.conversion.lora import LoraFormat, Part
    from refiners.conversion.lora.tools import ComposeMethod

    assert get_args(LoraFormat) == FORMATS and get_args(ComposeMethod) == METHODS and get_args(Part) == PARTS
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)
