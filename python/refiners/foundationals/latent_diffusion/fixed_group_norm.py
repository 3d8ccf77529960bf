"""Group normalization by statistics that do not change, so that the tiles of an image fit together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter


class FixedGroupNorm(fl.Chain, Adapter[fl.GroupNorm]):
    """Normalize as a group norm does, always by the means and variances of the first input.

    These are recorded in the first call, and folded with the weights into a scale and a shift for each channel.

    Args:
        target: The group norm; its ε and weights are used.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The input.

    Returns:
        Float[Tensor, "batch channels height width"]: The normalized input.

    Raises:
        ValueError: When called, if the first input was a batch of neither one nor this size.
    """

    def __init__(self, target: fl.GroupNorm) -> None:
        self.mean: Float[Tensor, " batch*groups"] | None = None
        self.var: Float[Tensor, " batch*groups"] | None = None
        self._folded: tuple[Tensor, Tensor] | None = None  # [batch, channels, 1, 1] each, in float32 at least
        with self.setup_adapter(target):
            super().__init__(target)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        scale, shift = self._folded or self._record(x)
        if scale.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"statistics were recorded for a batch of {scale.shape[0]}, got {tuple(x.shape)}")
        return torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype)

    def _record(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.target
        wide = torch.promote_types(x.dtype, torch.float32)
        grouped = x.detach().to(wide).reshape(x.shape[0] * norm.num_groups, -1)
        self.var, self.mean = torch.var_mean(grouped, dim=1, correction=0)

        def per_channel(statistic: Tensor) -> Tensor:
            channels = statistic.repeat_interleave(norm.channels // norm.num_groups)
            return channels.reshape(x.shape[0], norm.channels, 1, 1)

        weight, bias = (parameter.detach().to(wide).reshape(1, -1, 1, 1) for parameter in (norm.weight, norm.bias))
        scale = weight * per_channel((self.var + norm.eps).rsqrt())
        self._folded = scale, bias - per_channel(self.mean) * scale
        return self._folded


def copy_statistics(source: fl.Chain, target: fl.Chain) -> None:
    """Copy what the fixed group norms of a chain have recorded to those of another, which is a copy of it."""
    for ours, theirs in zip(target.layers(FixedGroupNorm), source.layers(FixedGroupNorm)):
        ours.mean, ours.var, ours._folded = theirs.mean, theirs.var, theirs._folded


@contextmanager
def fixed_group_norms(chain: fl.Chain) -> Generator[None, None, None]:
    """Replace every group norm below a chain by a `FixedGroupNorm`, until the context is left."""
    adapters: list[FixedGroupNorm] = []
    try:
        for norm, parent in list(chain.walk(fl.GroupNorm)):
            adapters.append(FixedGroupNorm(norm).inject(parent))
        yield
    finally:
        for adapter in adapters:
            adapter.eject()
