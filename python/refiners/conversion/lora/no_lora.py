"""What is no LoRA, and says so: whole checkpoints."""

from __future__ import annotations

from pathlib import Path

from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.detection import find_components
from refiners.fluxion.printable import printable

_CHECKPOINT = "a checkpoint, no LoRA: from_pretrained of a model loads it"


def check_is_no_checkpoint(source: TensorSource) -> None:
    """Raise `ValueError` if tensors that are no LoRA are those of whole networks."""
    found = find_components(source)
    if not found:
        return
    holds = ", ".join(f"{each.component} ({each.format})" for each in found)
    has_unet = any(each.component.startswith("unet") for each in found)
    first = first_keys(source)
    raise ValueError(
        f"{source.label} is {_CHECKPOINT if has_unet else 'no LoRA, but the weights of a whole network'}; it holds"
        f" {holds}; its first keys are {first}"
    )


def check_is_no_pipeline(path: Path | str) -> None:
    """Raise `ValueError` if a folder is that of a whole model."""
    if (Path(path) / "model_index.json").is_file():
        raise ValueError(f"{path} is {_CHECKPOINT}")


def first_keys(source: TensorSource) -> str:
    """Give the first three keys, as an error shows them."""
    return ", ".join(printable(key) for key in list(source.infos)[:3])
