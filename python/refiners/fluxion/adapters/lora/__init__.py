"""Low-rank adaptation: [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685)."""

from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.attach import auto_attach_loras
from refiners.fluxion.adapters.lora.lora import Conv2dLora, LinearLora, Lora

__all__ = ["Conv2dLora", "LinearLora", "Lora", "LoraAdapter", "auto_attach_loras"]
