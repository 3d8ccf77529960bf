"""What a configuration of PEFT may say that makes its file none that can be attached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refiners.fluxion.printable import printable

_TYPES = ("LORA", "LOHA", "LOKR", "IA3")
# The ways to begin with another base: what they take out of the weights of the model is in the matrices.
_CHANGING = ("pissa", "olora", "loftq", "corda", "lora_ga")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise `ValueError` if a file belongs to other weights than those of the model, or is of another kind.

    Args:
        config: The configuration.
        where: What stands before the names of its values in errors.
    """
    kind = config.get("peft_type")
    if kind and kind not in _TYPES:
        raise ValueError(f"{where}peft_type {shown(kind)} is not supported, expected one of {', '.join(_TYPES)}")
    start: Any = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGING):
        raise ValueError(
            f"{where}init_lora_weights is {shown(start)}: training began by changing the weights of the model too, and"
            " the file belongs to those. Save it in PEFT with path_initial_model_for_weight_conversion=, which makes"
            " it one for the weights as they were"
        )


def shown(value: Any) -> str:
    """Give a value as errors show it."""
    return printable(repr(value)) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
