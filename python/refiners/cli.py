"""The command line: `python -m refiners`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from refiners import __version__

# The modules are imported when they are run: each has a function `main(argv) -> int`.
COMMANDS = {
    "generate": "make images from a prompt and a checkpoint",
    "inspect": "say what a file of weights or of a LoRA holds",
    "lora": "convert, extract, resize and compose LoRA files",
    "doctor": "say what is installed and which path each operator takes, and why",
    "bench": "measure the operators against what they replace",
    "demo": "adapt a small diffusion model with LoRAs, and write the pictures",
}
_USAGE = "usage: python -m refiners {" + ",".join(COMMANDS) + "} [options]"


def main(argv: Sequence[str]) -> int:
    """Run a command.

    Args:
        argv: The command and its options.

    Returns:
        The exit code: 0 if all went well, 2 after an error that one line explains, 130 if it was interrupted.
    """
    command, *options = argv or ["--help"]
    if command in COMMANDS:
        return _run(command, options)
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        print(f"refiners {__version__}")
        return 0
    kind = "option" if command.startswith("-") else "command"
    print(f"python -m refiners: error: unknown {kind} {command!r}; {_USAGE}", file=sys.stderr)
    return 2


def _run(command: str, options: Sequence[str]) -> int:
    try:
        code = import_module(f"refiners.{command}").main(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads the output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 1
    except KeyboardInterrupt:
        print(f"python -m refiners {command}: interrupted", file=sys.stderr)
        return 130


def _help() -> str:
    lines = [_USAGE, "", "Adapt foundation models.", "", "commands:"]
    lines += [f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items()]
    lines += ["", "options:", "  -h, --help   show this", "  --version    show the version", ""]
    return "\n".join([*lines, "python -m refiners COMMAND --help lists the options of a command."])
