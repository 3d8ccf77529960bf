"""What updates begin with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import init

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training.trainable import TrainableLora

Initialisation: TypeAlias = Literal["gaussian", "kaiming", "orthogonal", "pissa"]
"""How `down` is drawn; `up` is zero, but for the last one, which takes both from the weight of the layer.

- `"gaussian"`: normal, with a standard deviation of 1 / rank: what a fresh `Lora` has.
- `"kaiming"`: uniform within ±1 / √inputs, as the implementation of [[arXiv:2106.09685]
  LoRA](https://arxiv.org/abs/2106.09685), and PEFT, have it; see [[arXiv:1502.01852] Delving Deep into
  Rectifiers](https://arxiv.org/abs/1502.01852), section 2.2.
- `"orthogonal"`: rows of length 1 at right angles, see [[arXiv:1312.6120] Exact
  solutions](https://arxiv.org/abs/1312.6120), section 3.
- `"pissa"`: the largest singular values and their vectors, see [[arXiv:2404.02948]
  PiSSA](https://arxiv.org/abs/2404.02948), equations 2 and 3. The layer keeps its weight; what the paper takes out of
  it, the update takes off what it adds: see `TrainableLora.start_here`.
"""

Draw: TypeAlias = Callable[[Tensor, int, "Generator | None"], object]


def initialise(
    lora: TrainableLora[Any], layer: fl.Linear | fl.Conv2d, initialisation: Initialisation, generator: Generator | None
) -> None:
    """Create the weights of an update that has none yet, on the device of its layer.

    Numbers are drawn in float32 at least, on the device of the generator, so that they depend on its seed alone.

    Args:
        lora: The update, on the meta device.
        layer: Its layer.
        initialisation: What it begins with.
        generator: Where the random numbers come from (default: torch's own of the device).
    """
    dtype = torch.promote_types(lora.down.weight.dtype, torch.float32)
    device = layer.weight.device
    if initialisation == "pissa":
        down, up = _principal_part(layer.weight.detach().to(dtype), lora.rank, lora.multiplier)
    else:
        down = torch.empty(lora.down.weight.shape, dtype=dtype, device=generator.device if generator else device)
        up = torch.zeros(lora.up.weight.shape, dtype=dtype, device=device)
        if device.type != "meta":
            _DRAWS[initialisation](down, lora.rank, generator)
    for part, weight in ((lora.down, down), (lora.up, up)):
        weight = weight.reshape(part.weight.shape).to(device=device, dtype=part.weight.dtype)
        part.weight = nn.Parameter(weight.contiguous())  # vectors of a decomposition lie the other way
    if initialisation == "pissa":
        lora.start_here()


def check_initialisation(
    initialisation: Initialisation, path: str, layer: fl.Linear | fl.Conv2d, rank: int, multiplier: float
) -> None:
    """Raise `ValueError` if updates of a layer cannot begin so."""
    if initialisation not in get_args(Initialisation):
        raise ValueError(f"initialisation must be one of {', '.join(get_args(Initialisation))}, got {initialisation!r}")
    if initialisation not in ("orthogonal", "pissa"):
        return
    weight = layer.weight
    outputs, inputs = weight.flatten(1).shape
    most = inputs if initialisation == "orthogonal" else min(outputs, inputs)  # no more rows are at right angles
    if rank > most:
        raise ValueError(f"{path}: rank must be at most {most} for the initialisation {initialisation!r}, got {rank}")
    if initialisation == "orthogonal":
        return
    if weight.is_meta or not torch.isfinite(weight).all():
        raise ValueError(f"{path}: the weight must be finite numbers for the initialisation 'pissa'")


@torch.no_grad()
def _principal_part(weight: Tensor, rank: int, multiplier: float) -> tuple[Tensor, Tensor]:
    """Split the part of a weight with the largest singular values in two factors of one size."""
    with torch.autocast(weight.device.type, enabled=False):
        left, values, right = _decomposed(weight.flatten(1))
        roots = (values[:rank] / multiplier).sqrt()
        return roots[:, None] * right[:rank], left[:, :rank] * roots


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cast(Any, torch.linalg).svd(matrix, full_matrices=False)


def _gaussian(down: Tensor, rank: int, generator: Generator | None) -> None:
    init.normal_(down, std=1 / rank, generator=generator)


def _kaiming(down: Tensor, rank: int, generator: Generator | None) -> None:
    init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)


def _orthogonal(down: Tensor, rank: int, generator: Generator | None) -> None:
    init.orthogonal_(down, generator=generator)


_DRAWS: dict[str, Draw] = {"gaussian": _gaussian, "kaiming": _kaiming, "orthogonal": _orthogonal}
