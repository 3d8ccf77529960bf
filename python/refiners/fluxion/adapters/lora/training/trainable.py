"""Low-rank updates as they are trained: with a multiplier, dropout, and a start that need not be zero."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.factors import apply_weight
from refiners.fluxion.adapters.lora.lora import Lora
from refiners.fluxion.adapters.lora.training.dropout import Dropout
from refiners.fluxion.kept import Kept
from refiners.fluxion.layers.watched import is_watched
from refiners.ops.lora_linear_masters import are_master_weights
from refiners.ops.transforms import is_autocast, is_transformed, requires_grad

T = TypeVar("T", fl.Linear, fl.Conv2d)


class TrainableLora(Lora[T]):
    """Compute `scale * multiplier * up(down(dropout(x)))`, or how far that has come from where it began.

    The multiplier is alpha / rank, see [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), section 4.1, or,
    stabilized, alpha / √rank, see [[arXiv:2312.03732] rsLoRA](https://arxiv.org/abs/2312.03732), theorem 3.2. It is
    kept apart from the scale, which is the user's and 1 while training.

    Beside a layer in 16 bits the weights may be in float32: see `refiners.ops.lora_linear_masters`. With
    dropout, the update is then computed in float32, from its input to its output.

    Attributes:
        alpha: The numerator of the multiplier; `None` stands for the rank.
        rank_stabilized: Whether the denominator is the root of the rank.
    """

    alpha: float | None = None
    rank_stabilized: bool = False

    def _set_up(self, alpha: float | None, rank_stabilized: bool, dropout: float) -> None:
        self.alpha = alpha
        self.rank_stabilized = rank_stabilized
        if dropout > 0:
            self.insert(0, Dropout(dropout))

    @property
    def down(self) -> T:
        return self._weighted()[0]

    @property
    def up(self) -> T:
        return self._weighted()[1]

    def _weighted(self) -> list[T]:
        return [cast(T, child) for child in self if isinstance(child, (fl.Linear, fl.Conv2d))]

    @property
    def dropout(self) -> float:
        """How likely an element of the input is set to 0 while training."""
        first = self[0]
        return first.p if isinstance(first, Dropout) else 0.0

    @property
    def multiplier(self) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @property
    def start(self) -> tuple[Tensor, Tensor] | None:
        """The weights that the update is measured from; `None` if it is the product of its weights itself."""
        buffers = self._buffers
        down, up = buffers.get("start_down"), buffers.get("start_up")
        return None if down is None or up is None else (down, up)

    def start_here(self) -> None:
        """Make the update zero: from now on it is how far the product of its weights has come from what it is.

        With B₀·A₀ for the product now, B·A - B₀·A₀ = B·(A - A₀) + (B - B₀)·A₀, which is of twice the rank. So written
        nothing of it is lost to rounding: the differences are small numbers, and at first zero.
        """
        for name, weight in (("start_down", self.down.weight), ("start_up", self.up.weight)):
            self.register_buffer(name, weight.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        down, up, start = self.down.weight, self.up.weight, self.start
        if start is None:
            return down, up
        return torch.cat([down - start[0], start[0]]), torch.cat([up, up - start[1]], dim=1)

    def operands(self, dtype: DType) -> tuple[Tensor, Tensor] | None:
        if is_transformed() or not self._is_as_built():
            return None
        weights = self.down.weight, self.up.weight
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and requires_grad(*weights)):
            return self.scaled_factors()
        sources = [[weight] for weight in weights] if self.start is None else zip(weights, self.start, strict=True)
        keepers = cast("tuple[Kept, Kept]", vars(self).setdefault("_kept", (Kept(), Kept())))
        with torch.no_grad():  # nothing is trained: the same tensors each time, for what is kept beside them
            down, up = (
                kept.find(lambda i=i: self.scaled_factors()[i].to(dtype), list(source), (dtype, self.multiplier))
                for i, (kept, source) in enumerate(zip(keepers, sources, strict=True))
            )
        return None if down is None or up is None else (down, up)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *out_shape"]:
        is_short = self._is_master_of(x)
        y = x.to(self.down.weight.dtype) if is_short else x
        layers = self._weighted()
        weights = {} if self.start is None else dict(zip(map(id, layers), self.factors(), strict=True))
        for name, layer in self._modules.items():
            if layer is layers[1] and self.multiplier != 1:
                y = y * self.multiplier
            weight = weights.get(id(layer))
            y = self._call_layer(layer, name, y) if weight is None else apply_weight(cast(T, layer), y, weight)
        return y.to(x.dtype) if is_short else y

    def _is_master_of(self, x: Tensor) -> bool:
        return are_master_weights(self.down.weight, self.up.weight, x.dtype) and not is_autocast(x)

    def _is_as_built(self) -> bool:
        """Whether the children are those of the constructor, unseen by hooks, and none draws random numbers."""
        children = tuple(self._modules.values())
        dropout, rest = (children[0], children[1:]) if isinstance(children[0], Dropout) else (None, children)
        if len(rest) != 3 or any(is_watched(each) for each in (self, *children)):
            return False
        if dropout is not None and (type(dropout) is not Dropout or (dropout.training and dropout.p > 0)):
            return False
        down, up, multiply = rest
        if type(down) is not type(up) or type(down) not in (fl.Linear, fl.Conv2d) or type(multiply) is not fl.Multiply:
            return False
        if down.bias is not None or up.bias is not None or multiply.bias != 0:
            return False
        mine, other = self.total_scale, multiply.scale
        return mine is other or (not isinstance(mine, Tensor) and not isinstance(other, Tensor) and mine == other)
