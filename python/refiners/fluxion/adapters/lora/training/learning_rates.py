"""Learning rates of the two matrices of updates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from refiners.fluxion.adapters.lora.lora import Lora
from refiners.fluxion.adapters.lora.training.trainable_loras import TrainableLoras


def lora_plus_groups(
    loras: TrainableLoras | Iterable[Lora[Any]],
    /,
    lr: float,
    ratio: float = 16.0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Make groups of parameters for any optimiser of torch, in which `up` learns faster than `down`.

    See [[arXiv:2402.12354] LoRA+](https://arxiv.org/abs/2402.12354), section 4: with one learning rate for both, wide
    layers learn too little from `down`; a ratio of about 16 served best there.

    Args:
        loras: The updates: what `add_trainable_loras` returns, or some of them.
        lr: The learning rate of `down`, the matrix A of the paper.
        ratio: That of `up`, the matrix B, divided by it.
        options: What else the optimiser takes for a group, such as `weight_decay`.

    Raises:
        TypeError: If something is no low-rank update.
        ValueError: If a number is not positive and finite, or nothing is to be trained.
    """
    for label, value in (("lr", lr), ("ratio", ratio)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{label} must be positive and finite, got {value}")
    downs: list[nn.Parameter] = []
    ups: list[nn.Parameter] = []
    for lora in loras.loras.values() if isinstance(loras, TrainableLoras) else loras:
        if not isinstance(lora, Lora):
            raise TypeError(f"loras must be low-rank updates, got {type(lora).__name__}")
        for layer, group in ((lora.down, downs), (lora.up, ups)):
            group += [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if not downs and not ups:
        raise ValueError("loras: none of the updates has a parameter that requires gradients")
    return [
        {"params": parameters, "lr": rate, **options}
        for parameters, rate in ((downs, lr), (ups, ratio * lr))
        if parameters
    ]
