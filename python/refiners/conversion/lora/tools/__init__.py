"""LoRA files made of others, and of checkpoints, without a model in memory."""

from refiners.conversion.lora.tools.compose import ComposeMethod, compose_loras
from refiners.conversion.lora.tools.convert import convert_lora
from refiners.conversion.lora.tools.extract import extract_lora
from refiners.conversion.lora.tools.resize import resize_lora
from refiners.conversion.lora.tools.written import WrittenLayer, WrittenLora

__all__ = [
    "ComposeMethod",
    "WrittenLayer",
    "WrittenLora",
    "compose_loras",
    "convert_lora",
    "extract_lora",
    "resize_lora",
]
