"""The command line finds its commands late, and explains a mistake in one line."""

import subprocess
import sys
from types import ModuleType

import pytest

from refiners import __version__
from refiners.cli import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"refiners {__version__}\n"


@pytest.mark.parametrize(
    "argv, expected", [(["dmeo"], "unknown command 'dmeo'"), (["--loud", "demo"], "unknown option '--loud'")]
)
def test_a_mistake_is_one_line_and_code_2(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"python -m refiners: error: {expected}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_gets_its_options_and_gives_the_exit_code(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []
    module = ModuleType(f"refiners.{command}")
    module.main = lambda argv: received.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"refiners.{command}", module)
    assert main([command, "--seed", "3", "x"]) == 7
    assert received == [["--seed", "3", "x"]]


def test_the_module_runs_without_importing_what_it_does_not_need() -> None:
    program = (
        "import runpy, sys; sys.argv = ['refiners', '--version']\n"
        "try: runpy.run_module('refiners', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[1] == "0 False"


def test_the_exit_code_reaches_the_shell() -> None:
    run = subprocess.run([sys.executable, "-m", "refiners", "nothing"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    program = (
        "import sys; from types import ModuleType; from refiners.cli import main\n"
        "module = sys.modules['refiners.doctor'] = ModuleType('doctor')\n"
        "module.main = lambda argv: print('x' * 1_000_000) or 0\n"
        "sys.exit(main(['doctor']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: list[str]) -> int:
        raise KeyboardInterrupt

    module = ModuleType("refiners.demo")
    module.main = interrupt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "refiners.demo", module)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "python -m refiners demo: interrupted\n"
