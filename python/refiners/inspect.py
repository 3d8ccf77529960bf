"""The command `python -m refiners inspect`: what a file of weights or of a LoRA holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refiners.options import OneLineParser, complain, fold


def main(argv: Sequence[str]) -> int:
    """Print what is in a file, of which only the header is read.

    Args:
        argv: The options; `--help` lists them.

    Returns:
        0; 1 if it is a LoRA of which something cannot be attached; 2 if the file cannot be read, after one line that
        says why.

    Raises:
        SystemExit: With code 2, after a one-line error, if an option is wrong; with code 0 after the help.
    """
    parser = OneLineParser(
        prog="python -m refiners inspect",
        description="Say what a file of weights or of a LoRA holds, and what of a LoRA can be attached.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a LoRA, a checkpoint, or the folder of one")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="the model that a LoRA is for, to compare sizes"
    )
    parser.add_argument("--variant", metavar="NAME", help="the files of that variant in the folder, such as fp16")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args(argv)
    try:
        found, text, code = _inspect(options.file, options.checkpoint, options.variant)
    except (ValueError, OSError) as error:
        return complain("inspect", fold(str(error)))
    print(json.dumps(found, indent=2) if options.json else text)
    return code


def _inspect(file: Path, checkpoint: Path | None, variant: str | None) -> tuple[dict[str, Any], str, int]:
    from refiners.conversion.description import describe
    from refiners.conversion.lora import inspect_lora

    if variant is not None and file.is_file():
        raise ValueError(f"argument --variant: {file} is one file; folders have variants")
    if _has_updates(file, variant):
        report = inspect_lora(file, checkpoint=checkpoint)
        return report.to_json(), str(report), 0 if report.is_whole else 1
    if checkpoint is not None:
        raise ValueError(
            f"argument --checkpoint: {file.name} is no LoRA, and only a LoRA is compared with a checkpoint"
        )
    description = describe(file, variant)
    return description.to_json(), str(description), 0


def _has_updates(file: Path, variant: str | None) -> bool:
    from refiners.conversion.checkpoint import Checkpoint
    from refiners.conversion.lora.keys import split_keys

    if (file / "model_index.json").is_file() or (file / "unet").is_dir():  # a pipeline
        return False
    with Checkpoint(file, variant) as opened:
        return bool(split_keys(opened.infos)[0])
