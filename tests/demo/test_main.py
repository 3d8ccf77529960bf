"""The demo from end to end, at few steps; its options; and the command that trains what it ships."""

import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from refiners.demo import main, train
from refiners.demo.options import parse_options
from refiners.demo.story import Story
from refiners.demo.style import OUTLINED
from refiners.demo.unet import DigitsUNet
from refiners.fluxion.utils import load_from_safetensors

PICTURES = ["base", "mixed", "real_outlined", "real_plain", "real_slanted"]
PICTURES += ["slanted_scale_0", "slanted_scale_0.5", "slanted_scale_1"]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def tell(out: Path, *options: str) -> int:
    return main(["--out", str(out), "--steps", "1", "--sampling-steps", "1", *options])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder that the demo wrote to, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    with redirect_stdout(StringIO()) as printed:
        assert tell(out) == 0
    return out, printed.getvalue()


@pytest.fixture
def out(told: tuple[Path, str]) -> Path:
    return told[0]


def test_the_demo_writes_every_file(out: Path) -> None:
    expected = {*(f"{name}.png" for name in PICTURES), "contact_sheet.png", "lora_slanted.safetensors"}
    assert {path.name for path in out.iterdir()} == expected
    sizes = {size_of(out / f"{name}.png") for name in PICTURES}
    assert len(sizes) == 1
    (width, height), (sheet_width, sheet_height) = sizes.pop(), size_of(out / "contact_sheet.png")
    assert sheet_width > 4 * width and sheet_height > 2 * height


def test_the_demo_says_what_it_did(told: tuple[Path, str]) -> None:
    out, text = told
    assert text.count("[ok]") == 3 and "[FAILED]" not in text
    for part in ("(SUM) LoraAdapter()", "without LoRA", "with LoRA, portable", str(out), "training: slanted"):
        assert part in text


def test_the_same_seed_gives_the_same_files(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refiners.demo.story.Story.measure", lambda story: None)  # takes long, and only prints
    assert tell(tmp_path) == 0
    for path in out.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_seed_gives_other_samples() -> None:
    stories = [Story(parse_options(["--seed", seed, "--sampling-steps", "1"])) for seed in ("0", "0", "1")]
    first, same, other = [story.sample("sampling") for story in stories]
    assert torch.equal(first, same)
    assert not torch.isclose(first, other).flatten(1).all(dim=1).any()


def test_a_failed_check_gives_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refiners.demo.story.eject_styles", lambda unet: None)
    monkeypatch.setattr("refiners.demo.story.Story.mix", lambda story: None)
    monkeypatch.setattr("refiners.demo.story.load_style", lambda unet, style, path: None)
    monkeypatch.setattr("refiners.demo.story.Story.measure", lambda story: None)
    assert tell(tmp_path) == 1


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--steps", "0"], "argument --steps: expected a whole number of at least 1, got '0'"),
        (["--seed", "-1"], "argument --seed: expected"),
        (["--seed", "x"], "argument --seed: expected a whole number of at least 0, got 'x'"),
        (["--seed", str(2**64)], f"argument --seed: expected a whole number of at most {2**64 - 1}, got '{2**64}'"),
        (["--seed", "9" * 10_000], f"at most {2**64 - 1}, got '{'9' * 37}...'"),
        (["--steps", str(2**63)], f"argument --steps: expected a whole number of at most {2**63 - 1}, got"),
        (["--sampling-steps", "1.5"], "got '1.5'"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
        (["--out", __file__], "is not a folder"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_a_bad_option_is_one_line_and_code_2(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_options(argv)
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and expected in captured.err


def test_the_greatest_seed_is_one() -> None:
    options = parse_options(["--seed", str(2**64 - 1), "--sampling-steps", "1"])
    assert options.seed == 2**64 - 1
    assert Story(options).generator.initial_seed() in (2**64 - 1, -1)  # torch may give it back as a signed number


def test_a_seed_that_is_too_great_stops_the_training_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main(["--seed", str(2**64)])
    assert f"at most {2**64 - 1}" in capsys.readouterr().err


def test_a_bad_option_stops_the_demo() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--steps", "0"])


def test_options_are_read_before_torch_is_loaded() -> None:
    program = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); from refiners.demo import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)\n"
        "main.__globals__['parse_options'] = lambda argv: sys.modules.update({'refiners.demo.story': None})\n"
        "try: main([])\n"
        "except ModuleNotFoundError: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-2:] == ["False", "False PASSIVE"]


def test_options_have_defaults() -> None:
    options = parse_options([])
    assert options.seed == 0 and options.out == Path("refiners-demo") and options.steps >= 1


@pytest.mark.parametrize("module, package", [("sklearn", "scikit-learn"), ("rich.progress", "rich")])
def test_a_missing_package_is_one_line_and_code_2(
    module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert tell(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and package in error and "'refiners[demo]'" in error


def test_a_folder_that_cannot_be_made_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert tell(tmp_path / "file" / "folder") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_training_command_makes_what_is_shipped(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    assert train.main(["--steps", "2", "--out", str(path)]) == 0
    DigitsUNet(device="meta").load_from_safetensors(path)
    torch.manual_seed(0)
    initial = DigitsUNet().state_dict()
    assert not any(torch.equal(weight, initial[name]) for name, weight in load_from_safetensors(path).items())


def test_training_leaves_the_average_of_the_weights() -> None:
    unet = DigitsUNet(channels=16, inner_channels=24, embedding_dim=8, num_tokens=2)
    initial = [weight.detach().clone() for weight in unet.parameters()]
    steps = train.train_base(unet, num_steps=1, seed=0)
    next(steps)
    trained = [weight.detach().clone() for weight in unet.parameters()]
    assert list(steps) == []
    for weight, before, after in zip(unet.parameters(), initial, trained):
        torch.testing.assert_close(weight.detach(), 0.1 * before + 0.9 * after)
    assert any(not torch.allclose(before, after) for before, after in zip(initial, trained))


def test_the_training_command_trains_styles(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"

    assert train.main(["--style", "outlined", "--steps", "1", "--out", str(path)]) == 0
    assert len(load_from_safetensors(path)) == len(load_from_safetensors(OUTLINED))
