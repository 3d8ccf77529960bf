"""What to do where float16 is not enough."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

import refiners.fluxion.layers as fl


def has_overflowed(x: Float[Tensor, "*shape"]) -> bool:
    """Say whether a result in float16 holds an infinity or what comes of one; waits for the device then, and only then.

    A norm that follows an infinity spreads it to all channels and pixels of a group as NaN, so that none stays hidden.
    """
    return x.dtype == torch.float16 and not bool(x.isfinite().all())


def call_in_float32(layer: fl.Chain, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*new_shape"]:
    """Call a layer that has weights in float16, and compute in float32.

    Args:
        layer: The layer. Its weights are back in place when the call ends, the same tensors.
        x: The input, in float16 or float32.

    Returns:
        The result in float16; what is too large for it is as large as it can be.
    """
    weights = {name: weight.float() for name, weight in layer.named_parameters()}
    largest = torch.finfo(torch.float16).max
    return functional_call(layer, weights, (x.float(),)).clamp(-largest, largest).half()
