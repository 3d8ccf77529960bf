"""The options of the demo."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refiners.options import MOST_SEED, OneLineParser, natural


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
