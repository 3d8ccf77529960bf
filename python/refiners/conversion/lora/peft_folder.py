"""The folder that PEFT loads: the tensors of a LoRA of one network, and its configuration."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refiners.conversion.safetensors_writer import Piece, write_safetensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What programs that train say, and PEFT asks for: of versions that know more, the rest is as they take it for granted.
_SAID: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "use_rslora": False,
}


def check_peft_folder(path: Path, name: str) -> None:
    """Raise `ValueError` if a folder cannot be written, or holds something else than what PEFT writes."""
    if path.suffix == ".safetensors":
        raise ValueError(f"{name} must be a folder for the format 'peft', got {str(path)!r}")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{name} must be in a folder that exists, got {str(path)!r}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name} must be a folder for the format 'peft', and {str(path)!r} is a file")
    others = sorted(each.name for each in path.iterdir() if each.name not in (WEIGHTS, CONFIG)) if path.exists() else []
    if others:
        raise ValueError(f"{name} {str(path)!r} holds other things, such as {others[0]!r}: give a folder of its own")


def write_peft_folder(
    path: Path | str, pieces: Mapping[str, Piece], config: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write a folder, by a temporary one next to it: one of its name that PEFT wrote is replaced at the end.

    Args:
        path: The folder.
        pieces: The tensors, by their keys.
        config: What the configuration says of them.
        metadata: Texts to save with the tensors.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the folder holds other things.
    """
    path = Path(path).resolve()  # a link keeps pointing to what it points to
    check_peft_folder(path, "path")
    made, old = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in ("", ".old"))
    made.mkdir()
    try:
        write_safetensors(made / WEIGHTS, pieces, metadata)
        (made / CONFIG).write_text(json.dumps({**_SAID, **config}, indent=2) + "\n", encoding="utf-8")
        if path.exists():
            path.rename(old)
        try:
            made.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
