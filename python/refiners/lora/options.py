"""The options of `python -m refiners lora`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from refiners.options import MOST_SEED, OneLineParser, natural, new_file, number

# Those of `conversion.lora`, which takes torch to import.
FORMATS = ("kohya", "diffusers", "refiners", "peft")
METHODS = ("cat", "svd", "ties", "dare")
PARTS = ("unet", "text_encoder")
DTYPES = ("float32", "float16", "bfloat16")
MOST_SCALE = 1e4  # of a LoRA
ACTIONS = {
    "convert": "write a LoRA file in the format of another program",
    "extract": "make a LoRA file of what fine-tuning changed in a checkpoint",
    "resize": "make a LoRA file smaller, by a lower rank",
    "compose": "make one LoRA file of several",
}
_PROG = "python -m refiners lora"
_HELP = f"""usage: {_PROG} {{{",".join(ACTIONS)}}} [options] --out FILE

Work on LoRA files, without a model in memory.

actions:
{chr(10).join(f"  {name:<9} {purpose}" for name, purpose in ACTIONS.items())}

examples:
  {_PROG} convert style.safetensors --format diffusers --out style-diffusers.safetensors
  {_PROG} extract --base v1-5.safetensors --tuned mine.safetensors --rank 32 --out mine-lora.safetensors
  {_PROG} resize style.safetensors --energy 0.95 --out small.safetensors
  {_PROG} compose style.safetensors:0.8 person.safetensors --out both.safetensors

{_PROG} ACTION --help explains the options of an action."""

_Add = Callable[..., argparse.Action]


def parse_options(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Read the command line: what to do, and its options.

    Raises:
        SystemExit: With code 2 after a one-line error, with code 0 after the help.
    """
    action, *rest = argv or ["--help"]
    if action in ("-h", "--help"):
        print(_HELP)
        raise SystemExit(0)
    parser = OneLineParser(prog=f"{_PROG} {action}", allow_abbrev=False, description=_DESCRIPTIONS.get(action))
    if action not in ACTIONS:
        OneLineParser(prog=_PROG).error(f"expected one of {', '.join(ACTIONS)}, got {action!r}")
    add = parser.add_argument
    _ADD[action](add)
    out = "the LoRA file to write, which ends in .safetensors, or the folder of PEFT; one of this name is replaced"
    add("--out", required=True, type=_new, metavar="FILE", help=out)
    if action == "convert":
        add("--format", choices=FORMATS, required=True, help=_FORMAT_HELP)
    else:
        add("--format", choices=FORMATS, default="kohya", help=f"{_FORMAT_HELP} (default: kohya)")
    add("--title", help="what to call it, in the file")
    add("--trigger", action="append", default=[], metavar="WORDS", help="what a prompt must say, in the file")
    add("--metadata", type=_text, action="append", default=[], metavar="KEY=TEXT", help="what else the file says")
    options = parser.parse_args(rest)
    if options.format != "peft" and options.out.suffix != ".safetensors":
        parser.error(f"argument --out: expected a name that ends in .safetensors, got '{options.out}'")
    if action in ("extract", "resize") and options.rank is None and options.energy is None:
        parser.error("give --rank or --energy, or both")
    if action == "compose":
        _check_compose(parser, options)
    return action, options


_FORMAT_HELP = "who reads it: kohya-ss/sd-scripts and most programs; diffusers; refiners; or PEFT, which has a folder"
_DESCRIPTIONS = {
    "convert": "Write a LoRA file as another program reads it. The numbers stay the same bit for bit.",
    "extract": "Compare two checkpoints, and write a LoRA file that does to the first one nearly what fine-tuning did.",
    "resize": "Write a LoRA file of a lower rank that does nearly the same: it is smaller, and faster.",
    "compose": (
        "Write one LoRA file that does what several do together. cat adds them exactly, and ranks add up; svd gives the"
        " nearest LoRA of a rank; ties keeps the largest numbers that agree in sign (arXiv:2306.01708); dare drops"
        " numbers at random and enlarges the others (arXiv:2311.03099)."
    ),
}


def _add_convert(add: _Add) -> None:
    _add_source(add)
    _add_checkpoint(add)
    add("--partial", action="store_true", help="leave out what is not understood, or the format has no tensors for")


def _add_extract(add: _Add) -> None:
    add("--base", required=True, type=_existing, metavar="PATH", help="the checkpoint before fine-tuning")
    add("--tuned", required=True, type=_existing, metavar="PATH", help="the checkpoint after it")
    _add_bound(add)
    add("--only", choices=PARTS, help="the U-Net alone, or the text encoders (default: both)")
    add("--norms", action="store_true", help="write the differences of norms, too")
    _add_computing(add)


def _add_resize(add: _Add) -> None:
    _add_source(add)
    _add_bound(add)
    _add_checkpoint(add)
    _add_computing(add)


def _add_compose(add: _Add) -> None:
    add("files", nargs="+", type=_scaled, metavar="FILE[:SCALE]", help="a LoRA file, and how much of it (default: 1)")
    add("--method", choices=METHODS, default="cat", help="how to merge them (default: cat)")
    add("--rank", type=natural(1), help="the rank of each layer, for all methods but cat")
    add("--density", type=_share, help="the share of the numbers to keep, for ties and dare")
    add("--seed", type=natural(0, MOST_SEED), help="which numbers dare drops")
    _add_checkpoint(add)
    _add_computing(add)


_ADD = {"convert": _add_convert, "extract": _add_extract, "resize": _add_resize, "compose": _add_compose}


def _add_source(add: _Add) -> None:
    add("source", type=_existing, metavar="FILE", help="a LoRA file of any format, or the folder of PEFT")


def _add_checkpoint(add: _Add) -> None:
    add("--checkpoint", type=_existing, metavar="PATH", help="the model that it is for (default: told by its names)")


def _add_bound(add: _Add) -> None:
    add("--rank", type=natural(1), help="the rank of each layer; with --energy, the largest one")
    add("--energy", type=_share, help="the share to keep of each layer, by as low a rank as does: 0.95, for example")


def _add_computing(add: _Add) -> None:
    add("--dtype", choices=DTYPES, help="the precision of the file (default: that of what is read)")
    add("--device", default="cpu", help="where to compute: cpu, cuda, ... (default: cpu)")


def _check_compose(parser: OneLineParser, options: argparse.Namespace) -> None:
    for name, methods in (("rank", METHODS[1:]), ("density", METHODS[2:]), ("seed", METHODS[3:])):
        is_given = getattr(options, name) is not None
        if is_given != (options.method in methods):
            what = "has no use" if is_given else "is needed"
            parser.error(f"argument --{name}: {what} with --method {options.method}")
    paths = [path.resolve() for path, _ in options.files]
    if len(set(paths)) < len(paths):
        parser.error("a file is given twice: give it once, with the sum of its scales")


def _existing(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no file or folder {text!r}")
    return Path(text)


def _new(text: str) -> Path:
    return new_file(text) if Path(text).suffix == ".safetensors" else Path(text)


def _scaled(text: str) -> tuple[Path, float]:
    """Read a file, or a folder, with or without a scale; a name with a colon in it is a file first."""
    path, _, scale = text.rpartition(":")
    if Path(text).exists():
        return Path(text), 1.0
    if not path or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"there is no file {path or text!r}")
    try:
        return Path(path), number(-MOST_SCALE, MOST_SCALE)(scale)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no FILE:SCALE: {error}") from error


def _share(text: str) -> float:
    value = number(0, 1)(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _text(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=TEXT, got {text!r}")
    return key, value
