"""Adapters: changes to a tree that are injected, and ejected again without a trace."""

from refiners.fluxion.adapters.adapter import Adapter
from refiners.fluxion.adapters.lora import Conv2dLora, LinearLora, Lora, LoraAdapter, auto_attach_loras

__all__ = ["Adapter", "Conv2dLora", "LinearLora", "Lora", "LoraAdapter", "auto_attach_loras"]
