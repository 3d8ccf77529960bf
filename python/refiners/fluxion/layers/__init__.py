"""The layers. By convention: `import refiners.fluxion.layers as fl`."""

from typing import Any

from refiners.fluxion.layers.activations import GLU, Activation, GeLU, GeLUApproximation, ReLU, Sigmoid, SiLU
from refiners.fluxion.layers.attentions import Attention, ScaledDotProductAttention, SelfAttention, SelfAttention2d
from refiners.fluxion.layers.basics import (
    Cos,
    Flatten,
    GetArg,
    Identity,
    Multiply,
    Parameter,
    Permute,
    Reshape,
    Sin,
    Slicing,
    Squeeze,
    Transpose,
    Unflatten,
    Unsqueeze,
)
from refiners.fluxion.layers.chain import (
    Breakpoint,
    Chain,
    Concatenate,
    Distribute,
    Lambda,
    Matmul,
    Parallel,
    Passthrough,
    Residual,
    Return,
    SetContext,
    Sum,
    UseContext,
)
from refiners.fluxion.layers.conv import Conv2d, ConvTranspose2d
from refiners.fluxion.layers.converter import Converter
from refiners.fluxion.layers.embedding import Embedding
from refiners.fluxion.layers.linear import Linear, MultiLinear
from refiners.fluxion.layers.maxpool import MaxPool1d, MaxPool2d
from refiners.fluxion.layers.module import ContextModule, Module, WeightedModule
from refiners.fluxion.layers.norm import GroupNorm, InstanceNorm2d, LayerNorm, LayerNorm2d
from refiners.fluxion.layers.padding import ReflectionPad2d
from refiners.fluxion.layers.pixelshuffle import PixelUnshuffle
from refiners.fluxion.layers.sampling import Downsample, Interpolate, Upsample

__all__ = [
    "GLU",
    "Activation",
    "Attention",
    "Breakpoint",
    "Chain",
    "Concatenate",
    "ContextModule",
    "Conv2d",
    "ConvTranspose2d",
    "Converter",
    "Cos",
    "Distribute",
    "Downsample",
    "Embedding",
    "Flatten",
    "GeLU",
    "GeLUApproximation",
    "GetArg",
    "GroupNorm",
    "Identity",
    "InstanceNorm2d",
    "Interpolate",
    "Lambda",
    "LayerNorm",
    "LayerNorm2d",
    "Linear",
    "Matmul",
    "MaxPool1d",
    "MaxPool2d",
    "Module",
    "MultiLinear",
    "Multiply",
    "Parallel",
    "Parameter",
    "Passthrough",
    "Permute",
    "PixelUnshuffle",
    "ReLU",
    "ReflectionPad2d",
    "Reshape",
    "Residual",
    "Return",
    "ScaledDotProductAttention",
    "SelfAttention",
    "SelfAttention2d",
    "SetContext",
    "SiLU",
    "Sigmoid",
    "Sin",
    "Slicing",
    "Squeeze",
    "Sum",
    "Transpose",
    "Unflatten",
    "Unsqueeze",
    "Upsample",
    "UseContext",
    "WeightedModule",
]


def __getattr__(name: str) -> Any:
    # Adapters import layers, so `fl.Adapter` is looked up when it is asked for.
    if name == "Adapter":
        from refiners.fluxion.adapters.adapter import Adapter

        return Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
