"""Which file, or files, of a folder hold the weights of a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

# As diffusers and transformers name them; the first that is there is taken.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
_SUFFIXES = (".safetensors", ".bin")
SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
_PREFERRED = ("fp16", "bf16")  # where there is no file without a variant


def weight_files(path: Path, variant: str | None = None) -> list[Path]:
    """List the files that hold the weights of one model.

    Args:
        path: A file; an index of shards (`*.index.json`); or the folder of one model.
        variant: Which of the variants of a folder is meant, as `fp16` in `model.fp16.safetensors`. By default, the file
            without a variant; where there is none, `fp16`, then `bf16`, then the only other one.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the folder has no such file, or several that could be meant; or a file has an unknown suffix.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_file():
        if path.name.endswith(".json"):
            return _shards(path)
        if path.suffix not in SAFETENSORS + PICKLES:
            raise ValueError(f"{path} must end in one of {', '.join(SAFETENSORS + PICKLES)}")
        return [path]
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{path} is the folder of a pipeline: name one of its models, or use open_diffusion_checkpoint"
        )
    found = _variants(path)
    if not found:
        return [_only_file(path)]
    if variant is None:
        others = [name for name in found if name not in ("", *_PREFERRED)]
        order = ["", *_PREFERRED, *(others if len(others) == 1 else [])]
        variant = next((name for name in order if name in found), None)
        if variant is None:
            raise ValueError(f"{path} has several variants, name one of them: {', '.join(others)}")
    if variant not in found:
        known = ", ".join(name or "(none)" for name in found)
        raise ValueError(f"{path} has no variant {variant!r}, expected one of {known}")
    file = found[variant]
    return _shards(file) if file.suffix == ".json" else [file]


def _variants(folder: Path) -> dict[str, Path]:
    """Give the file, or the index of the shards, of each variant; the empty one is the file without a variant."""
    for stem in _STEMS:
        found: dict[str, Path] = {}
        for suffix in _SUFFIXES:
            for path in sorted(folder.iterdir()):
                single = re.fullmatch(rf"{stem}(?:\.([\w-]+))?{re.escape(suffix)}", path.name)
                index = re.fullmatch(rf"{stem}{re.escape(suffix)}\.index(?:\.([\w-]+))?\.json", path.name)
                match = single or index
                if match and not re.search(r"-\d+-of-\d+$", match[1] or "") and path.is_file():
                    found.setdefault(match[1] or "", path)
        if found:
            return found
    return {}


def _only_file(folder: Path) -> Path:
    for suffixes in (SAFETENSORS, PICKLES):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(f"{folder} has several files, name one: {', '.join(file.name for file in files)}")
    raise ValueError(f"{folder} has no file of weights: none ends in {', '.join(SAFETENSORS + PICKLES)}")


def _shards(index: Path) -> list[Path]:
    try:
        names: set[str] = set(json.loads(index.read_text())["weight_map"].values())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{index} is no index of shards: it has no object `weight_map`") from error
    if not names:
        raise ValueError(f"{index} names no file")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names a file that is not next to it: {name!r}")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names a file that is missing: {name}")
    return [index.parent / name for name in sorted(names)]
