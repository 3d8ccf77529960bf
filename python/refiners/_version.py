"""The version of the installed distribution: pyproject.toml is the one place that states it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("refiners")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
