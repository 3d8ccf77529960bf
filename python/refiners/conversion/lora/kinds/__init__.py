"""The kinds of updates in files: one module for each that can be attached."""

from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.lora.kinds.low_rank import LowRank, layer_problem
from refiners.conversion.lora.kinds.recognised import RECOGNISED

__all__ = ["RECOGNISED", "Kind", "LowRank", "layer_problem"]
