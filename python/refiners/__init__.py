"""Adapt foundation models: declarative chains, adapters that inject and eject, native operators."""

from typing import TYPE_CHECKING, Any

from refiners._version import __version__

if TYPE_CHECKING:
    from refiners.conversion.lora import inspect_lora

__all__ = ["__version__", "inspect_lora"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: it takes torch to import.
    if name == "inspect_lora":
        from refiners.conversion.lora import inspect_lora

        return inspect_lora
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
