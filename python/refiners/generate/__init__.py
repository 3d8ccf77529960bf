"""`python -m refiners generate`: images from prompts."""

from refiners.generate.main import main

__all__ = ["main"]
