"""What to do where float16 is not enough."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.warning import warn_user


def has_overflowed(x: Float[Tensor, "*shape"]) -> bool:
    """Say whether a result in float16 holds an infinity or what comes of one; waits for the device then, and only then.

    A norm that follows an infinity spreads it to all channels and pixels of a group as NaN, so that none stays hidden.
    """
    return x.dtype == torch.float16 and not x.is_meta and not bool(x.isfinite().all())


T = TypeVar("T", bound=fl.Chain)


def in_float32(layer: T) -> T:
    """Copy a layer and convert its weights to float32. Gradients reach those of the layer, which stays as it is."""
    return deepcopy(layer, {id(weight): weight.float() for weight in layer.parameters()})  # these in place of copies


def call_in_float32(layer: fl.Chain, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*new_shape"]:
    """Call a layer that has weights in float16, and compute in float32.

    A copy is called, because others may use the same weights at the same time.

    Args:
        layer: The layer.
        x: The input, in float16 or float32.

    Returns:
        The result in float16; what is too large for it is as large as it can be.
    """
    largest = torch.finfo(torch.float16).max
    return in_float32(layer)(x.float()).clamp(-largest, largest).half()


def warn_of_no_numbers(pixels: Float[Tensor, "batch 3 height width"], latents: Float[Tensor, "batch 4 h w"]) -> None:
    """Warn if decoded images hold infinities or what comes of one; waits for the device, as whoever reads them will.

    Decoding spreads what is not finite in the latents over their image: only then are these looked at, to say which.
    """
    if pixels.is_meta or bool(pixels.isfinite().all()):
        return
    if not bool(latents.isfinite().all()):
        what, where = "the latents, and so the images,", "the U-Net"
    else:
        what, where = "the decoded images", "the autoencoder"
    overflow = f"{where} has exceeded the range of float16 (try bfloat16 or float32)"
    causes = [overflow] if latents.dtype == torch.float16 or pixels.dtype == torch.float16 else []
    causes += [f"the weights of {where} are damaged", *(["a LoRA has too large a scale"] * (where == "the U-Net"))]
    warn_user(f"{what} hold numbers that are not finite: maybe {', or '.join(causes)}", RuntimeWarning)
