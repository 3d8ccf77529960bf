"""Linear layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType
from torch.nn import Linear as _Linear

from refiners.fluxion.layers.activations import ReLU
from refiners.fluxion.layers.chain import Chain
from refiners.fluxion.layers.module import Module, WeightedModule
from refiners.ops import linear


class Linear(_Linear, WeightedModule):
    """Linear layer, `x @ weight.T + bias`, as `torch.nn.Linear`. It is computed by `refiners.ops.linear`.

    Args:
        in_features: The number of input features.
        out_features: The number of output features.
        bias: Whether there is a bias.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "*batch in_features"]): The input.

    Returns:
        Float[Tensor, "*batch out_features"]: The output.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        return linear(input, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Draw the initial weights, unless they are on the meta device, where there is nothing to draw."""
        if not self.weight.is_meta:
            super().reset_parameters()


class MultiLinear(Chain):
    """Perceptron: linear layers with a `ReLU` between each two.

    A single layer maps `inner_dim` to `output_dim`.

    Args:
        input_dim: The number of input features.
        output_dim: The number of output features.
        inner_dim: The number of features between two layers.
        num_layers: The number of linear layers.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "*batch input_dim"]): The input.

    Returns:
        Float[Tensor, "*batch output_dim"]: The output.

    Raises:
        ValueError: If there is no layer.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        inner_dim: int,
        num_layers: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        layers: list[Module] = []
        for index in range(num_layers - 1):
            layers.append(Linear(inner_dim if index else input_dim, inner_dim, device=device, dtype=dtype))
            layers.append(ReLU())
        layers.append(Linear(inner_dim, output_dim, device=device, dtype=dtype))
        super().__init__(layers)
