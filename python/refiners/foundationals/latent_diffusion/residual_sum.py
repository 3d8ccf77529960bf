"""The sum of two convolutions' work and a shortcut, which residual blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.conv import can_add, is_plain_conv2d
from refiners.fluxion.layers.watched import is_watched


class ResidualSum(fl.Sum):
    """Add a shortcut to what a chain gives.

    Where the chain ends in a convolution, that adds the shortcut itself: nothing is written that is only read again.
    """

    def forward(self, *args: Any) -> Any:
        parts = _parts(tuple(self._modules.values())) if len(args) == 1 and isinstance(args[0], Tensor) else None
        if parts is None:
            return super().forward(*args)
        chain, last, shortcut = parts
        last_step = partial(_add_to, last, shortcut(*args))
        *_, name = chain._modules
        return chain._run({**chain._modules, name: last_step}, args)


def _add_to(convolution: fl.Conv2d, residual: Tensor, x: Tensor) -> Tensor:
    """Convolve, and add a residual."""
    kernel, padding = convolution.kernel_size, cast("tuple[int, int]", convolution.padding)
    gaps = zip(kernel, convolution.dilation, padding, convolution.stride)
    keeps_size = all(step == 1 and 2 * pad == gap * (size - 1) for size, gap, pad, step in gaps)
    shape = (x.shape[0], convolution.out_channels, *x.shape[2:])
    if keeps_size and residual.shape == shape and can_add(convolution, x, residual):
        return convolution.convolve(x, residual=residual)
    return convolution(x) + residual


def _parts(children: Sequence[fl.Module]) -> tuple[fl.Chain, fl.Conv2d, fl.Module] | None:
    """Give the chain, the convolution that it ends in, and the shortcut, in whatever order they are."""
    if len(children) != 2:
        return None
    chain, shortcut = children if type(children[0]) is fl.Chain else reversed(children)
    if type(chain) is not fl.Chain or type(shortcut) not in (fl.Identity, fl.Conv2d) or is_watched(chain):
        return None  # what else there may be could see that it is called first
    last = chain[-1] if len(chain) else None
    return (chain, last, shortcut) if last is not None and is_plain_conv2d(last) else None


def residual_layers(
    in_channels: int,
    out_channels: int,
    num_groups: int,
    eps: float,
    device: Device | str | None,
    dtype: DType | None,
) -> tuple[fl.Chain, fl.Module]:
    """Make the chain and the shortcut of a residual block: a convolution if the number of channels is another one.

    Raises:
        ValueError: If one of the numbers of channels is not divisible by `num_groups`.
    """
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value < 1 or value % num_groups != 0:
            raise ValueError(f"{name} must be positive and divisible by num_groups {num_groups}, got {value}")
    norm = partial(fl.GroupNorm, num_groups=num_groups, eps=eps, device=device, dtype=dtype)
    convolution = partial(fl.Conv2d, device=device, dtype=dtype)
    chain = fl.Chain(
        norm(in_channels),
        fl.SiLU(),
        convolution(in_channels, out_channels, kernel_size=3, padding=1),
        norm(out_channels),
        fl.SiLU(),
        convolution(out_channels, out_channels, kernel_size=3, padding=1),
    )
    return chain, fl.Identity() if in_channels == out_channels else convolution(
        in_channels, out_channels, kernel_size=1
    )
