"""Adapt foundation models: declarative chains, adapters that inject and eject, native operators."""

from refiners._version import __version__

__all__ = ["__version__"]
