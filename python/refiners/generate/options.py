"""The options of `python -m refiners generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refiners.options import MOST_SEED, OneLineParser, existing_file, natural, new_file, number

# Those of `generate.solvers` and of `ModelPredictionType`, which take torch to import.
PREDICTIONS = ("noise", "velocity", "sample")
SOLVERS = ("ddim", "dpm", "dpm-karras", "dpm-sde", "euler", "euler-ancestral", "heun", "lcm", "unipc")
MOST_SCALE = 1e4  # of a LoRA
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class LoraOption:
    """A LoRA file, and how much of it."""

    path: Path
    scale: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user can choose; `None` leaves a choice to the model."""

    checkpoint: Path | str  # a repository, if `download`
    download: bool
    variant: str | None
    prompt: str
    negative: str
    out: Path
    steps: int
    scale: float | None
    seed: int | None
    size: tuple[int, int] | None  # height and width, in pixels
    count: int
    solver: str | None
    trailing: bool
    prediction: str | None
    lora: list[LoraOption]
    partial: bool
    init: Path | None
    mask: Path | None
    strength: float | None
    preview: int
    tiled: bool
    device: str
    dtype: str | None


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        SystemExit: With code 2 after a one-line error, with code 0 after the help.
    """
    parser = OneLineParser(
        prog="python -m refiners generate",
        description="Generate images from a prompt, by a checkpoint of Stable Diffusion 1.5 or XL on this machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="a folder in the format of diffusers, or a single file")
    add("--download", action="store_true", help="take --checkpoint from the Hugging Face Hub: OWNER/NAME[@REVISION]")
    add("--variant", metavar="NAME", help="the files of that variant in the folder, such as fp16")
    add("--prompt", required=True, help="what the image shows")
    add("--negative", default="", metavar="PROMPT", help="what it does not show")
    add("--out", type=_new_png, default=Path("image.png"), help="the PNG to write (default: image.png)")
    add("--steps", type=natural(1, 1000), default=30, help="steps from noise to image (default: 30)")
    add("--scale", type=number(0), help="the weight of the prompt; 0 or 1: no guidance (default: that of the model)")
    add("--seed", type=natural(0, MOST_SEED), help="the seed of the noise (default: a random one, which is told)")
    add("--size", type=_size, metavar="WIDTHxHEIGHT", help="multiples of 8 (default: that of --init, or of the model)")
    add("--count", type=natural(1), default=1, help="images, of consecutive seeds, in one batch (default: 1)")
    add("--solver", choices=SOLVERS, help="the solver (default: that of the model)")
    add("--trailing", action="store_true", help="begin at the last timestep, for single files of Turbo and Lightning")
    add(
        "--prediction",
        choices=PREDICTIONS,
        help="what the U-Net predicts (default: what the checkpoint says, or noise)",
    )
    add("--lora", type=_lora, action="append", default=[], metavar="FILE[:SCALE]", help="may be given several times")
    add("--partial", action="store_true", help="attach what fits of each --lora, and tell what is left out")
    add("--init", type=existing_file, metavar="IMAGE", help="an image to start from, or to paint into with --mask")
    add("--mask", type=existing_file, metavar="IMAGE", help="white where to paint, for a checkpoint that paints into")
    add("--strength", type=number(0, 1), help="how much of --init to give up, without --mask (default: 0.8)")
    add("--preview", type=natural(1), default=0, metavar="N", help="write OUT.preview.png every N steps")
    add("--tiled", action="store_true", help="encode and decode in tiles: large images in less memory")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    add("--dtype", choices=DTYPES, help="(default: float32 on the CPU, float16 elsewhere)")
    options = Options(**vars(parser.parse_args(argv)))
    if not options.download:
        if not Path(options.checkpoint).exists():
            hint = "; --download takes it from the Hugging Face Hub" if str(options.checkpoint).count("/") == 1 else ""
            parser.error(f"argument --checkpoint: there is no file or folder {options.checkpoint!r}{hint}")
        options = replace(options, checkpoint=Path(options.checkpoint))
        if options.variant is not None and Path(options.checkpoint).is_file():
            parser.error(f"argument --variant: {str(options.checkpoint)!r} is one file; folders have variants")
    if options.seed is not None and options.seed + options.count - 1 > MOST_SEED:
        parser.error(f"argument --seed: with --count {options.count}, the last seed is more than {MOST_SEED}")
    paths = [lora.path.resolve() for lora in options.lora]
    if len(set(paths)) < len(paths):
        parser.error("argument --lora: a file is given twice: give it once, with the sum of its scales")
    if options.partial and not options.lora:
        parser.error("argument --partial: needs --lora, the files to attach in part")
    if options.scale == 0:  # so written in many places for what is 1 by the formula: the prompt alone
        options = replace(options, scale=1.0)
    if options.scale == 1 and options.negative:
        parser.error("argument --negative: without guidance, by --scale 0 or 1, it has no effect")
    if options.mask is not None and options.init is None:
        parser.error("argument --mask: needs --init, the image to paint into")
    if options.strength is not None and (options.init is None or options.mask is not None):
        parser.error("argument --strength: needs --init, and no --mask, which begins with noise alone")
    if options.init is not None and options.mask is None and options.strength is None:
        options = replace(options, strength=0.8)
    return options


def _new_png(text: str) -> Path:
    path = new_file(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, got {text!r}")
    return path


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    sides = [int(side) if side.isascii() and side.isdecimal() else 0 for side in (height, width)]
    if any(side < 8 or side % 8 for side in sides):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in multiples of 8, such as 512x768, got {text!r}")
    return sides[0], sides[1]


def _lora(text: str) -> LoraOption:
    """Read a file, or a folder, with or without a scale; a name with a colon in it is a file first."""
    path, _, scale = text.rpartition(":")
    if Path(text).exists():
        return LoraOption(path=Path(text), scale=1.0)
    if not path or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"there is no file {path or text!r}")
    try:
        return LoraOption(path=Path(path), scale=number(-MOST_SCALE, MOST_SCALE)(scale))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no FILE:SCALE: {error}") from error
