"""The command `python -m refiners lora`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from refiners.lora.options import PARTS, parse_options
from refiners.options import complain, fold

if TYPE_CHECKING:
    from refiners.conversion.lora.tools import WrittenLora

_OPTIONS = {  # what the functions say, and what that is on the command line
    "give model or checkpoint": "give --checkpoint",
    "use another method than 'cat'": "use another --method than cat",
    "compose_loras makes": "python -m refiners lora compose --method svd makes",
    "destination must be": "argument --out: expected",
    "base and tuned must": "--base and --tuned must",
    "norms=True needs format='kohya'": "--norms needs --format kohya",
    "norms=True writes": "--norms writes",
}


def main(argv: Sequence[str]) -> int:
    """Convert, extract, resize or compose LoRA files.

    Args:
        argv: The action and its options; `--help` lists them.

    Returns:
        0; 2 if something that the user can mend stopped it, after one line that says what. Nothing is written then.

    Raises:
        SystemExit: With code 2, after a one-line error, if an option is wrong; with code 0 after the help.
    """
    action, options = parse_options(argv)
    try:
        written = _run(action, options)
    except (ValueError, OSError) as error:
        return complain(f"lora {action}", _in_options(fold(str(error), _hint(action, options, str(error)))))
    except MemoryError:
        return complain(f"lora {action}", "there is not enough memory")
    print(_in_options(str(written)), file=sys.stderr)
    print(options.out)
    return 0


def _hint(action: str, options: argparse.Namespace, message: str) -> str:
    """Name the command that lists what is wrong with the file that an error is of."""
    if action == "extract":
        files = [options.tuned, options.base]
    else:
        files = [path for path, _ in options.files] if action == "compose" else [options.source]
    first = message.partition("\n")[0]
    file = next((each for each in files if str(each) in first), files[0])
    checkpoint = None if action == "extract" else options.checkpoint
    against = "" if checkpoint is None else f" --checkpoint {checkpoint}"
    rest = ", --partial writes the rest" if action == "convert" and not options.partial else ""
    return f"python -m refiners inspect {file}{against} says more{rest}"


def _in_options(text: str) -> str:
    """Give the names of options for the arguments that the functions name."""
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def _run(action: str, options: argparse.Namespace) -> WrittenLora:
    from refiners.conversion.lora import lora_metadata
    from refiners.conversion.lora.tools import compose_loras, convert_lora, extract_lora, resize_lora

    said = lora_metadata(title=options.title, trigger_words=options.trigger) | dict(options.metadata)
    shared: dict[str, Any] = {"format": options.format, "metadata": said}
    if action == "convert":
        return convert_lora(
            options.source, options.out, checkpoint=options.checkpoint, partial=options.partial, **shared
        )
    shared |= {"rank": options.rank, "dtype": _dtype(options.dtype), "device": _device(options.device)}
    with _bar() as progress:
        if action == "extract":
            parts = PARTS if options.only is None else (options.only,)
            more = {"energy": options.energy, "parts": parts, "norms": options.norms, "progress": progress}
            return extract_lora(options.base, options.tuned, options.out, **more, **shared)
        shared |= {"checkpoint": options.checkpoint, "progress": progress}
        if action == "resize":
            return resize_lora(options.source, options.out, energy=options.energy, **shared)
        more = {"method": options.method, "density": options.density, "seed": options.seed}
        return compose_loras(dict(options.files), options.out, **more, **shared)


def _dtype(name: str | None) -> Any:
    from refiners.fluxion.utils import str_to_dtype

    return None if name is None else str_to_dtype(name)


def _device(name: str) -> Any:
    import torch

    if name == "meta":
        raise ValueError("argument --device: 'meta' computes nothing")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"argument --device: {name!r} is not to be had here: {reason}") from error


@contextmanager
def _bar() -> Generator[Callable[[int, int], None]]:
    """Draw a bar of how many layers are done."""
    from tqdm import tqdm

    with tqdm(unit="layer", disable=None, file=sys.stderr) as bar:  # None: not if nobody looks

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
