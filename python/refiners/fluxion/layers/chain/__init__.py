"""Chains, the other inner nodes of a tree, and the leaves that read and write contexts."""

from refiners.fluxion.layers.chain.branches import Concatenate, Distribute, Matmul, Parallel, Passthrough, Residual, Sum
from refiners.fluxion.layers.chain.chain import Chain
from refiners.fluxion.layers.chain.context_layers import SetContext, UseContext
from refiners.fluxion.layers.chain.errors import ChainError, ReturnException
from refiners.fluxion.layers.chain.functions import Breakpoint, Lambda, Return
from refiners.fluxion.layers.chain.keys import generate_unique_names
from refiners.fluxion.layers.module import structural_copy

__all__ = [
    "Breakpoint",
    "Chain",
    "ChainError",
    "Concatenate",
    "Distribute",
    "Lambda",
    "Matmul",
    "Parallel",
    "Passthrough",
    "Residual",
    "Return",
    "ReturnException",
    "SetContext",
    "Sum",
    "UseContext",
    "generate_unique_names",
    "structural_copy",
]
