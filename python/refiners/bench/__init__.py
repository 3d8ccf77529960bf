"""`python -m refiners bench`: the operators, measured against what they replace."""

from refiners.bench.command import main

__all__ = ["main"]
