"""The options of the commands, and their one-line errors."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that explains a mistake in one line, and ends with code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (--help lists the options)", file=sys.stderr)
        raise SystemExit(2)


MOST = 2**63 - 1  # what torch takes for a size
MOST_SEED = 2**64 - 1  # and for a seed


def natural(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return a reader of whole numbers from a least one to a greatest one."""

    def read(text: str) -> int:
        shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
        try:
            number = int(text) if text.isdecimal() else least - 1
        except ValueError:  # Python refuses to read thousands of digits
            number = most + 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {shown}")
        if number > most:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {most}, got {shown}")
        return number

    return read


class Options(NamedTuple):
    """What the user can choose."""

    seed: int
    out: Path
    steps: int
    sampling_steps: int


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line of the demo.

    Raises:
        SystemExit: With code 2 after a one-line error, with code 0 after the help.
    """
    parser = OneLineParser(
        prog="python -m refiners demo",
        description="Adapt a small diffusion model of handwritten digits with LoRAs, and write pictures of the story.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=natural(0, MOST_SEED), default=0, help="where all random numbers begin")
    parser.add_argument("--out", type=Path, default=Path("refiners-demo"), help="the folder of the pictures")
    parser.add_argument("--steps", type=natural(1), default=200, help="training steps of the LoRA")
    parser.add_argument("--sampling-steps", type=natural(1), default=16, help="steps from noise to image")
    options = Options(**vars(parser.parse_args(argv)))
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"argument --out: {options.out} is not a folder")
    return options
