"""Every block of code in README.md, CONTRIBUTING.md and docs/ runs; the `text` block after it is what it prints.

- `python`: the blocks of a page run in order and share one namespace, as if typed into one session. What a block prints
  stands in the `text` block right after it.
- `console`: lines that begin with `$ ` are commands. Each must exist: a make target, a subcommand with its options, an
  extra, a file. The other lines are left to the reader.
- Nothing else is fenced.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Checkpoints that pages load: the tests put small ones with random weights there, and make small images of few steps.
CHECKPOINTS = {
    "stable-diffusion-v1-5": "SD15",
    "stable-diffusion-inpainting": "SD15_INPAINTING",
    "stable-diffusion-xl-base-1.0": "SDXL",
}
REDUCED = {"(512, 512)": "(64, 64)", "(1024, 1024)": "(64, 64)", "=30": "=3"}
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass
class Block:
    """A fenced block: its language, its text, and the line of its first character."""

    language: str
    code: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """List the fenced blocks of a page."""
    return [
        Block(
            language=match["language"],
            code=re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE),
            line=text.count("\n", 0, match.start("code")) + 1,
        )
        for match in FENCE.finditer(text)
    ]


def run_page(name: str, text: str) -> None:
    """Run a page from top to bottom; raise AssertionError where it says something that does not hold."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    blocks = blocks_of(text)
    for block, after in zip(blocks, [*blocks[1:], None]):
        where = f"{name}:{block.line}"
        if block.language == "python":
            printed = StringIO()
            with redirect_stdout(printed):
                exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
            expected = after.code if after is not None and after.language == "text" else ""
            assert printed.getvalue().rstrip() == expected.rstrip(), f"{where} prints something else"
        elif block.language == "console":
            commands = re.findall(r"^\$ (.*)", block.code, re.MULTILINE)
            assert commands, f"{where} has no command"
            for command in commands:
                check_command(command, where)
        else:
            assert block.language == "text", f"{where}: no block may be of the language '{block.language}'"


def check_command(command: str, where: str) -> None:
    """Assert that a command of a page exists, with its targets, options, extras and files."""
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)  # the environment of the command
    match words:
        case ["make", *rest]:
            makefile = (ROOT / "Makefile").read_text()
            for word in rest:
                name, is_variable, _ = word.partition("=")
                pattern = rf"^{name} [?:]?=" if is_variable else rf"^{name}:.*##"
                assert re.search(pattern, makefile, re.MULTILINE), f"{where}: make knows no {name}"
        case ["python", "-m", "refiners", "lora", action, *rest]:
            check_options(rest, ("lora", action), where)
        case ["python", "-m", "refiners", subcommand, *rest]:
            check_options(rest, (subcommand,), where)
        case ["python" | "bash", script, *_]:
            assert (ROOT / script).is_file(), f"{where}: no file {script}"
        case ["pip", "install", *rest]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
                check_extras(extra.split(","), where)
        case ["git" | "cd", *_]:
            pass
        case _:
            raise AssertionError(f"{where}: nothing checks the command '{command}'")


def check_options(words: list[str], subcommand: tuple[str, ...], where: str) -> None:
    """Assert that a subcommand has the options among some words."""
    for option in (word for word in words if word.startswith("-")):
        known = re.search(rf"(^|[\s,[]){option}\b", help_of(subcommand))
        assert known, f"{where}: no {option} in {' '.join(subcommand)}"


@lru_cache
def help_of(subcommand: tuple[str, ...]) -> str:
    """Give the help of a subcommand; it must have one."""
    command = [sys.executable, "-m", "refiners", *subcommand, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def check_extras(extras: list[str], where: str) -> None:
    """Assert that pyproject.toml declares these extras."""
    section = (
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    )
    for extra in extras:
        assert re.search(rf"^{extra} = \[", section, re.MULTILINE), f"{where}: no extra {extra}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_holds(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    used = [name for name in CHECKPOINTS if f'"{name}"' in text]
    if used:
        monkeypatch.syspath_prepend(ROOT / "tests" / "parity")
        checkpoints = import_module("checkpoints")
        for name in used:
            checkpoints.write_folder(tmp_path / name, checkpoints.small(getattr(checkpoints, CHECKPOINTS[name])))
        for full, reduced in REDUCED.items():
            text = text.replace(full, reduced)
    run_page(page.relative_to(ROOT).as_posix(), text)


def test_every_variable_of_the_documentation_is_read_somewhere() -> None:
    sources = [ROOT / "setup.py", ROOT / "CMakeLists.txt", *(ROOT / "python").rglob("*.py")]
    known = set(re.findall(r"REFINERS_[A-Z_]+", "".join(source.read_text() for source in sources)))
    named = set(re.findall(r"REFINERS_[A-Z]+(?:_[A-Z]+)*", "".join(page.read_text() for page in PAGES)))
    assert named - known == set()


def test_every_link_of_the_pages_at_the_root_leads_somewhere() -> None:
    links = [link for page in ROOT.glob("*.md") for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def fenced(*blocks: str) -> str:
    return "\n\nWords.\n\n".join(f"```{block}\n```" for block in blocks)


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (fenced("python\nprint(1)", "text\n2"), "prints something else"),
        (fenced("python\nprint(1)"), "prints something else"),
        (fenced("python\nx = 1", "text\n1"), "prints something else"),
        (fenced("yaml\na: 1"), "no block may be of the language 'yaml'"),
        (fenced("\nanything"), "no block may be of the language ''"),
        (fenced("console\nmake test"), "has no command"),
        (fenced("console\n$ make tset"), "make knows no tset"),
        (fenced("console\n$ make test TROCH=1"), "make knows no TROCH"),
        (fenced("console\n$ python -m refiners doctor --sede 1"), "no --sede in doctor"),
        (fenced("console\n$ python -m refiners lora resize a --seed 1"), "no --seed in lora resize"),
        (fenced("console\n$ python examples/absent.py"), "no file examples/absent.py"),
        (fenced("console\n$ pip install 'refiners[tset]'"), "no extra tset"),
        (fenced("console\n$ rm -rf /"), "nothing checks the command"),
    ],
)
def test_a_page_that_lies_is_found(page: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        run_page("page.md", page)


def test_the_blocks_of_a_page_share_one_namespace() -> None:
    run_page("page.md", fenced("python\nx = 1", "python\nprint(x + 1)", "text\n2"))


def test_a_block_that_fails_says_where() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("page.md", "Words.\n\n```python\nx = 1\n1 / 0\n```\n")
    frame = caught.tb
    while frame.tb_next:
        frame = frame.tb_next
    assert (frame.tb_frame.f_code.co_filename, frame.tb_lineno) == ("page.md", 5)
