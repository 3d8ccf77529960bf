"""The command get_weights, and that importing what it uses downloads and imports nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from refiners.conversion import cli
from refiners.conversion.utils import Conversion, Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture
def got(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was downloaded or converted; the pixel art LoRA cannot be."""
    found: list[str] = []
    names = {id(value): name for name, value in cli.all_weights().items()}

    def get(self: Hub | Conversion) -> None:
        found.append(names[id(self)])
        if "pixelart" in found[-1]:
            raise ConnectionError("no route")

    monkeypatch.setattr(Hub, "download", get)
    monkeypatch.setattr(Conversion, "convert", get)
    return found


def test_without_names_everything_is_asked_for_and_what_fails_is_said_at_the_end(
    got: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["get_weights"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert got == list(cli.all_weights())
    assert len(got) == 58
    assert {"loras.sdxl_lcm", "loras.sdxl_lightning_4steps", "unet_sdxl.lightning_1step"} <= set(got)
    assert "1 of 58 failed: loras.sdxl_pixelart" in capsys.readouterr().err


def test_names_are_of_files_or_of_modules(got: list[str]) -> None:
    cli.main(["ella", "loras.sdxl_dpo", "autoencoder_sdxl"])
    assert got == [
        "autoencoder_sdxl.juggernautXL_v10",
        "autoencoder_sdxl.madebyollin_fp16fix",
        "autoencoder_sdxl.stability",
        "ella.sd15_t5xl",
        "loras.sdxl_dpo",
    ]


@pytest.mark.parametrize("name", ["unet", "unet_sd15.", "unet_sd15.absent", ""])
def test_a_wrong_name_is_refused(name: str, got: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["ella", name])
    assert caught.value.code == 2
    assert f"there are no weights of the name {name!r}" in capsys.readouterr().err
    assert got == []


def test_a_list_downloads_nothing(got: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--list", "ella", "preprocessors"])
    assert capsys.readouterr().out.split() == ["ella.sd15_t5xl", "preprocessors.informative_drawings"]
    assert got == []


def test_a_missing_package_is_named(
    got: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["ella"])
    assert caught.value.code == 1
    assert "missing: huggingface_hub, requests, tqdm; pip install 'refiners[conversion]'" in capsys.readouterr().err
    assert got == []


def test_importing_everything_imports_no_optional_package() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "python").with_suffix("").parts)
        for path in (ROOT / "python/refiners/conversion").rglob("*.py")
    ]
    names = ", ".join(name.removesuffix(".__init__") for name in modules)
    code = f"import sys, torch; before = set(sys.modules); import {names}; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "refiners.conversion.loading" in loaded
    optional = re.compile(r"(huggingface_hub|requests|tqdm|diffusers|transformers|torch\.hub|httpx|segment_anything)\b")
    assert [name for name in loaded if optional.match(name)] == []
