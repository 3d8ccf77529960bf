"""`python -m refiners lora`: convert, extract, resize and compose LoRA files."""

from refiners.lora.main import main

__all__ = ["main"]
