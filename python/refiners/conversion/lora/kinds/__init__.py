"""The kinds of updates in files: one module for each that can be attached."""

from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.lora.kinds.known import KINDS, LOW_RANK
from refiners.conversion.lora.kinds.recognised import Recognised

__all__ = ["KINDS", "LOW_RANK", "Kind", "Recognised"]
