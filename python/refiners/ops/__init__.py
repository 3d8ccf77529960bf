"""The operators: each runs everywhere through torch, and faster where the native library has a kernel for it."""

from refiners.ops.attention import attention
from refiners.ops.conv2d import conv2d
from refiners.ops.geglu import geglu
from refiners.ops.group_norm import group_norm
from refiners.ops.library import NativeLibraryWarning
from refiners.ops.linear import linear
from refiners.ops.lora_block import lora_block_cache, prepare_lora_block
from refiners.ops.lora_conv2d import lora_conv2d
from refiners.ops.lora_linear import lora_linear
from refiners.ops.weighted_sum import weighted_sum

__all__ = [
    "NativeLibraryWarning",
    "attention",
    "conv2d",
    "geglu",
    "group_norm",
    "linear",
    "lora_block_cache",
    "lora_conv2d",
    "lora_linear",
    "prepare_lora_block",
    "weighted_sum",
]
