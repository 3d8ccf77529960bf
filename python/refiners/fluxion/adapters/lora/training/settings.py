"""The sizes of updates: rank and alpha, for all layers and for some by their paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training.choice import PathTable
from refiners.fluxion.adapters.lora.training.trainable import TrainableLora
from refiners.fluxion.adapters.lora.training.trainable_layers import TrainableConv2dLora, TrainableLinearLora

_SHORT_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LoraSizes:
    """What updates are like; see `add_trainable_loras`.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If a number is out of range, or a pattern is no regular expression.
    """

    rank: int = 16
    alpha: float | None = None
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    dropout: float = 0.0
    dtype: DType | None = None

    def __post_init__(self) -> None:
        _check_rank("rank", self.rank)
        if self.alpha is not None:
            _check_alpha("alpha", self.alpha)
        if not _is_number(self.dropout):
            raise TypeError(f"dropout must be a number, got {self.dropout!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {self.dropout}")
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise TypeError(f"dtype must be a torch.dtype, got {self.dtype!r}")
        for argument, values, check in (
            ("rank_pattern", self.rank_pattern, _check_rank),
            ("alpha_pattern", self.alpha_pattern, _check_alpha),
        ):
            if not isinstance(values, Mapping):
                raise TypeError(f"{argument} must be a dict of numbers by patterns of paths, got {values!r}")
            for pattern, value in values.items():
                check(f"{argument}[{pattern!r}]", value)

    def make(self, name: str, layers: Mapping[str, fl.Linear | fl.Conv2d]) -> dict[str, TrainableLora[Any]]:
        """Make updates without weights for layers by their paths.

        Raises:
            ValueError: If a pattern fits no path, or the dtype does not go with that of a layer.
        """
        ranks, alphas = PathTable("rank_pattern", self.rank_pattern), PathTable("alpha_pattern", self.alpha_pattern)
        made: dict[str, TrainableLora[Any]] = {}
        for path, layer in layers.items():
            options: dict[str, Any] = {
                "rank": ranks.find(path) or self.rank,
                "alpha": alphas.find(path) or self.alpha,
                "rank_stabilized": self.rank_stabilized,
                "dropout": self.dropout,
                "device": "meta",
                "dtype": self._dtype_for(path, layer.weight.dtype),
            }
            is_linear = isinstance(layer, fl.Linear)
            made[path] = (
                TrainableLinearLora(name, layer, **options)
                if is_linear
                else TrainableConv2dLora(name, layer, **options)
            )
        for table in (ranks, alphas):
            table.check_all_used(list(layers))
        return made

    def _dtype_for(self, path: str, dtype: DType) -> DType:
        wanted = torch.promote_types(dtype, torch.float32) if self.dtype is None else self.dtype
        if wanted != dtype and not (wanted == torch.float32 and dtype in _SHORT_DTYPES):
            raise ValueError(f"dtype must be {dtype}, as that of {path}, or torch.float32 beside 16 bits, got {wanted}")
        return wanted


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_rank(label: str, rank: object) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"{label} must be a whole number, got {rank!r}")
    if rank < 1:
        raise ValueError(f"{label} must be at least 1, got {rank}")


def _check_alpha(label: str, alpha: Any) -> None:
    if not _is_number(alpha):
        raise TypeError(f"{label} must be a number, got {alpha!r}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{label} must be positive and finite, got {alpha}")


def as_list(value: str | Sequence[str] | None) -> list[str] | None:
    """Make a list of patterns, which may be one alone; raise `TypeError` if it is neither."""
    if value is None or isinstance(value, str):
        return None if value is None else [value]
    if not isinstance(value, Sequence):
        raise TypeError(f"paths must be a pattern or a list of them, got {value!r}")
    return list(value)
