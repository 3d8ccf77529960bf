"""The updates of linear layers and of convolutions, as they are trained."""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.convolution import geometry_of, sizes_of
from refiners.fluxion.adapters.lora.lora import Conv2dLora, LinearLora
from refiners.fluxion.adapters.lora.training.trainable import TrainableLora
from refiners.ops.low_rank_conv2d_masters import low_rank_conv2d_masters
from refiners.ops.transforms import is_transformed


class TrainableLinearLora(TrainableLora[fl.Linear], LinearLora):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The low-rank update of a linear layer, as it is trained.

    Args:
        name: What the update is called where several share a layer.
        layer: The layer. Its shape is taken over, nothing else of it is kept.
        rank: The inner dimension.
        alpha: The numerator of the multiplier (default: the rank, so that it is 1).
        rank_stabilized: Whether its denominator is the root of the rank.
        dropout: How likely an element of the input is set to 0 while training.
        scale: The multiplier of the user (dimensionless).
        device: Where the weights are created.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "*batch in_features"]): The input of the layer.

    Returns:
        Float[Tensor, "*batch out_features"]: The update of its output.

    Raises:
        ValueError: If the rank is not positive.
    """

    def __init__(
        self,
        name: str,
        /,
        layer: fl.Linear,
        rank: int = 16,
        alpha: float | None = None,
        rank_stabilized: bool = False,
        dropout: float = 0.0,
        scale: float = 1.0,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        LinearLora.__init__(
            self, name, layer.in_features, layer.out_features, rank=rank, scale=scale, device=device, dtype=dtype
        )
        self._set_up(alpha, rank_stabilized, dropout)


class TrainableConv2dLora(TrainableLora[fl.Conv2d], Conv2dLora):
    """The low-rank update of a convolution, as it is trained: one like it, and one of 1×1 after it.

    Args:
        name: What the update is called where several share a layer.
        layer: The convolution, of one group. Its geometry is taken over, nothing else of it is kept.
        rank: The inner number of channels.
        alpha: See `TrainableLinearLora`, as for the following.
        rank_stabilized: See there.
        dropout: See there.
        scale: See there.
        device: Where the weights are created.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels in_height in_width"]): The input of the layer.

    Returns:
        Float[Tensor, "batch out_channels out_height out_width"]: The update of its output.

    Raises:
        ValueError: If the rank is not positive, or the convolution has several groups.
    """

    def __init__(
        self,
        name: str,
        /,
        layer: fl.Conv2d,
        rank: int = 16,
        alpha: float | None = None,
        rank_stabilized: bool = False,
        dropout: float = 0.0,
        scale: float = 1.0,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        if layer.groups != 1:
            raise ValueError(f"layer must be a convolution of one group, got {layer}")
        self._geometry = geometry_of(layer)
        options: dict[str, Any] = {"rank": rank, "scale": scale, "device": device, "dtype": dtype}
        Conv2dLora.__init__(self, name, layer.in_channels, layer.out_channels, **sizes_of(layer), **options)
        self._set_up(alpha, rank_stabilized, dropout)

    def lora_layers(
        self, device: Device | str | None = None, dtype: DType | None = None
    ) -> tuple[fl.Conv2d, fl.Conv2d]:
        options: dict[str, Any] = {"use_bias": False, "device": device, "dtype": dtype}
        down = fl.Conv2d(self.in_channels, self.rank, **self._geometry, **options)
        return down, fl.Conv2d(self.rank, self.out_channels, kernel_size=1, **options)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "batch in_channels in_height in_width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        down = self.down
        is_simple = x.ndim == 4 and down.padding_mode == "zeros" and not isinstance(down.padding, str)
        if not (is_simple and self._is_master_of(x) and self._is_as_built()) or is_transformed():
            return super().forward(x)
        geometry = down.stride, cast("tuple[int, int]", down.padding), down.dilation
        return self.ensure_find(fl.Multiply)(low_rank_conv2d_masters(x, *self.scaled_factors(), *geometry))
