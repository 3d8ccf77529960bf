"""The command that makes images, interrupted: one line, and no half of a file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refiners import cli

FolderOf = Callable[[str], Path]


def options(folder: Path, out: Path, *more: str) -> list[str]:
    small = ["--size", "64x64", "--seed", "1", "--preview", "1"]
    return ["generate", "--checkpoint", str(folder), "--prompt", "a", "--out", str(out), *small, *more]


def test_between_steps(folder_of: FolderOf, tmp_path: Path) -> None:
    out, preview = tmp_path / "image.png", tmp_path / "image.preview.png"
    # A job in the background, as these tests may be, is born without Ctrl-C.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from refiners import cli"
    run_it = f"{start}; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", run_it, *options(folder_of("SD15"), out, "--steps", "1000")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        end = time.monotonic() + 120
        while not preview.exists() and run.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        output, errors = run.communicate(timeout=60)
    assert (run.returncode, output, errors) == (130, "", "python -m refiners generate: interrupted\n")
    assert list(tmp_path.iterdir()) == [preview]
    with Image.open(preview) as image:
        image.load()


def test_while_a_file_is_written(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "image.png"
    out.write_bytes(b"before")

    def interrupt(_: Image.Image, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert cli.main(options(folder_of("SD15"), out, "--steps", "1")) == 130
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1] == "python -m refiners generate: interrupted"
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]
