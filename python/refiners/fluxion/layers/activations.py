"""Element-wise non-linearities, and the gate made of one."""

from __future__ import annotations

from abc import ABC
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.fluxion.layers.module import Module
from refiners.fluxion.layers.watched import is_watched
from refiners.ops import geglu


class Activation(Module, ABC):
    """The base of the element-wise non-linearities."""


class SiLU(Activation):
    """Sigmoid Linear Unit, `x * sigmoid(x)`.

    See [[arXiv:1702.03118] Sigmoid-Weighted Linear Units](https://arxiv.org/abs/1702.03118), section 2.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.silu(x)


class ReLU(Activation):
    """Rectified Linear Unit, `max(x, 0)`.

    See [[arXiv:1803.08375] Deep Learning using Rectified Linear Units](https://arxiv.org/abs/1803.08375).
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.relu(x)


class GeLUApproximation(Enum):
    """How to approximate the Gaussian error linear unit.

    Attributes:
        NONE: Not at all, `x * Φ(x)` with the normal distribution function Φ.
        TANH: `0.5 * x * (1 + tanh(√(2 / π) * (x + 0.044715 * x³)))`.
        SIGMOID: `x * sigmoid(1.702 * x)`.
    """

    NONE = "none"
    TANH = "tanh"
    SIGMOID = "sigmoid"


class GeLU(Activation):
    """Gaussian Error Linear Unit.

    See [[arXiv:1606.08415] Gaussian Error Linear Units](https://arxiv.org/abs/1606.08415), section 2.

    Args:
        approximation: The formula to use.
    """

    def __init__(self, approximation: GeLUApproximation = GeLUApproximation.NONE) -> None:
        super().__init__()
        self.approximation = approximation

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self.approximation is GeLUApproximation.SIGMOID:
            return x * (1.702 * x).sigmoid_()  # in place: one temporary less
        return F.gelu(x, approximate=self.approximation.value)


class Sigmoid(Activation):
    """Logistic function, `1 / (1 + exp(-x))`."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(x)


_IN_GEGLU = (GeLUApproximation.NONE, GeLUApproximation.TANH)


class GLU(Module):
    """Gated Linear Unit: the first half of the features, times the activation of the second half.

    With a GeLU it is computed by `refiners.ops.geglu`.

    See [[arXiv:2002.05202] GLU Variants Improve Transformer](https://arxiv.org/abs/2002.05202), equation 5.

    Args:
        activation: The activation of the gate.

    Receives:
        x (Float[Tensor, "*batch features"]): The features and their gates, one after the other.

    Returns:
        Float[Tensor, "*batch features//2"]: The gated features.

    Raises:
        AssertionError: When called, if the number of features is odd.
        ValueError: When called, if `x` has no dimension.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def __repr__(self) -> str:
        return f"{type(self).__name__}(activation={self.activation})"

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features//2"]:
        try:
            features = x.shape[-1]
        except IndexError:  # not asked before: that would cost something in every call
            raise ValueError(f"x must have at least one dimension, got shape {tuple(x.shape)}") from None
        if features % 2 != 0:
            raise AssertionError(f"Non-batch input dimension must be divisible by 2, got {features}")
        activation = self.activation
        if type(activation) is GeLU and activation.approximation in _IN_GEGLU and not is_watched(activation):
            return geglu(x, tanh=activation.approximation is GeLUApproximation.TANH)
        output, gate = x.chunk(2, dim=-1)
        return output * activation(gate)
