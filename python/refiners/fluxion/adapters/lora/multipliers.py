"""The multipliers of several updates as one tensor, for the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, dtype as DType

from refiners.fluxion.adapters.lora.region import Region
from refiners.ops.transforms import is_transformed


class Multipliers:
    """The tensor that holds numbers, kept while they are the same."""

    def __init__(self) -> None:
        # By whether gradients are recorded: where they are, the tensor is never changed in place.
        self._kept: dict[bool, tuple[tuple[float, ...], Tensor]] = {}

    def of(self, scales: Sequence[float | Tensor | Region], x: Tensor, places: Sequence[int]) -> Tensor:
        """Give the multipliers as a tensor of shape [adapters], or with as many more dimensions as they depend on.

        Args:
            scales: The multipliers.
            x: What the layer is called with, on whose device they will be.
            places: The shape of what it returns, without the channels: [batch], [batch, tokens], or
                [batch, height, width].

        Raises:
            ValueError: If the shape of a multiplier does not begin like that of the places.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        for scale in scales:
            if isinstance(scale, (Tensor, Region)):
                return _stack(scales, x, tuple(places), dtype)
        values: tuple[Any, ...] = tuple(scales)
        if torch.compiler.is_compiling() or type(x) is not Tensor or is_transformed():
            return torch.tensor(values, device=x.device, dtype=dtype)
        records = torch.is_grad_enabled()
        kept_values, kept = self._kept.get(records, ((), None))
        if kept is not None and (kept.device != x.device or kept.dtype != dtype):
            kept = None
        if kept is not None and kept_values == values:
            return kept
        with torch.inference_mode(False):
            tensor = torch.tensor(values, device=x.device, dtype=dtype)
            if kept is not None and not records and kept.shape == tensor.shape:
                tensor = kept.copy_(tensor)  # a captured graph reads this very tensor
            if type(tensor) is Tensor:
                self._kept[records] = values, tensor
        return tensor


def count_samples(scales: Sequence[float | Tensor | Region]) -> int:
    """Give the number of samples for which there are multipliers: 1 where they are the same for all."""
    return max((scale.shape[0] for scale in scales if isinstance(scale, Tensor) and scale.ndim > 0), default=1)


def _stack(scales: Sequence[float | Tensor | Region], x: Tensor, places: tuple[int, ...], dtype: DType) -> Tensor:
    found = [scale.at(places, x.device, dtype) if isinstance(scale, Region) else scale for scale in scales]
    tensors = [torch.as_tensor(scale, dtype=dtype, device=x.device) for scale in found]
    lead = places[: max(tensor.ndim for tensor in tensors)]
    return torch.stack([_expanded(tensor, lead) for tensor in tensors])


def _expanded(scale: Tensor, lead: tuple[int, ...]) -> Tensor:
    sizes = (*scale.shape, *[1] * (len(lead) - scale.ndim))
    if len(sizes) != len(lead) or any(size not in (1, full) for size, full in zip(sizes, lead)):
        hint = ""
        if scale.shape[0] * 2 == lead[0]:
            hint = ": with guidance, the batch has the negative prompts first, then the positive ones"
        raise ValueError(f"a scale of shape {tuple(scale.shape)} does not fit a result with the places {lead}{hint}")
    return scale.reshape(sizes).expand(lead)
