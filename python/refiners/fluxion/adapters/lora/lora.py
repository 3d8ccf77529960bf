"""The low-rank update of one layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, device as Device, dtype as DType, nn
from torch.nn.init import normal_, zeros_

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.checks import check_scale
from refiners.fluxion.adapters.lora.convolution import by_size, go_like
from refiners.fluxion.adapters.lora.update import LayerUpdate
from refiners.fluxion.bulk import collections_paused

if TYPE_CHECKING:
    from refiners.fluxion.adapters.lora.adapter import LoraAdapter

T = TypeVar("T", bound=fl.WeightedModule)


class Lora(Generic[T], LayerUpdate):
    """Compute `scale * up(down(x))`, the low-rank update of a layer.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), section 4.1. A fresh update is zero.

    Args:
        name: What the update is called where several share a layer.
        rank: The inner dimension.
        scale: The multiplier (dimensionless).
        device: Where the weights are created.
        dtype: Their dtype.

    Raises:
        TypeError: If the rank is no whole number, or the scale neither a number nor a tensor.
        ValueError: If the rank is not positive, or the scale not finite.
    """

    def __init__(
        self,
        name: str,
        /,
        rank: int = 16,
        scale: float = 1.0,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        if isinstance(rank, bool) or not isinstance(rank, Integral):
            raise TypeError(f"rank must be a whole number, got {rank!r}")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        check_scale(name, scale)
        self.name = name
        self._rank = rank
        self._scale = scale
        super().__init__(*self.lora_layers(device=device, dtype=dtype), fl.Multiply(scale))
        self.reset_parameters()

    @abstractmethod
    def lora_layers(self, device: Device | str | None = None, dtype: DType | None = None) -> tuple[T, T]:
        """Create the layers `down` and `up`."""

    @property
    def down(self) -> T:
        """The layer into the inner dimension: the matrix A of the paper."""
        return self[0]  # pyright: ignore[reportReturnType]

    @property
    def up(self) -> T:
        """The layer out of the inner dimension: the matrix B of the paper."""
        return self[1]  # pyright: ignore[reportReturnType]

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self._rank

    @property
    def multiplier(self) -> float:
        """What the product of the factors is multiplied by, beside the scale: alpha / rank of what is trained, or 1."""
        return 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """Give the weights, of `down` and of `up`, whose product is the update for a scale and a multiplier of 1."""
        return self.down.weight, self.up.weight

    def scaled_factors(self, dtype: DType | None = None) -> tuple[Tensor, Tensor]:
        """Give the factors of the update for a scale of 1, in their dtype or another one."""
        down, up = (factor if dtype is None else factor.to(dtype) for factor in self.factors())
        return down, up if self.multiplier == 1 else up * self.multiplier

    def operands(self, dtype: DType) -> tuple[Tensor, Tensor] | None:
        """Give what `refiners.ops.lora_linear` takes for a layer of a dtype, or `None` if only a call will do.

        Subclasses of `LinearLora` say so; of that class itself `find_plain_parts` knows.
        """
        return None

    def reset_parameters(self) -> None:
        """Draw `down` from a normal distribution of standard deviation 1 / rank, and set `up` to zero."""
        if self.down.weight.is_meta:
            return  # there is nothing to draw yet, and torch takes a millisecond to find that out
        normal_(tensor=self.down.weight, std=1 / self.rank)
        zeros_(tensor=self.up.weight)

    @classmethod
    def from_weights(cls, name: str, /, down: Tensor, up: Tensor) -> Lora[Any]:
        """Make an update from its weights: a `LinearLora` from 2-D ones, a `Conv2dLora` from 4-D ones.

        The tensors become the parameters: nothing is initialised, no random number is drawn.

        Args:
            name: The name of the update.
            down: Shape [rank, in], or [rank, in, height, width].
            up: Shape [out, rank], or [out, rank, height, width].

        Raises:
            ValueError: If the number of dimensions is another.
            AssertionError: If the ranks of the two differ.
        """
        if (down.ndim, up.ndim) == (2, 2):
            return LinearLora.from_weights(name, down, up)
        if (down.ndim, up.ndim) == (4, 4):
            return Conv2dLora.from_weights(name, down, up)
        raise ValueError(f"Unsupported weight shapes: up={tuple(up.shape)}, down={tuple(down.shape)}")

    @classmethod
    def from_dict(cls, name: str, /, state_dict: dict[str, Tensor]) -> dict[str, Lora[Any]]:
        """Make updates from the weights of a file, taken two by two in their order: down, then up.

        Args:
            name: The name of all the updates.
            state_dict: Tensors by key. Keys without `.weight`, such as `.alpha`, are passed over.

        Returns:
            The updates by key, without the last two parts: `a.b` for `a.b.lora_down.weight`.

        Raises:
            ValueError: If the weights of a pair are not both 2-D or both 4-D.
            AssertionError: If the ranks of a pair differ.
        """
        weights = {key: tensor for key, tensor in state_dict.items() if ".weight" in key}
        pairs = zip(*[iter(weights.items())] * 2)
        with collections_paused():
            return {
                ".".join(key.split(".")[:-2]): cls.from_weights(name, down=down, up=up)
                for (key, down), (_, up) in pairs
            }

    def load_weights(self, down_weight: Tensor, up_weight: Tensor) -> None:
        """Replace the weights, in the dtype and on the device of the present ones (without a copy if they agree).

        Args:
            down_weight: Shape [rank, in], or [rank, in, height, width].
            up_weight: Shape [out, rank], or [out, rank, height, width].

        Raises:
            AssertionError: If a shape differs; nothing was replaced.
        """
        for label, layer, weight in (("down", self.down, down_weight), ("up", self.up, up_weight)):
            if weight.shape != layer.weight.shape:
                raise AssertionError(
                    f"{label}_weight must have shape {tuple(layer.weight.shape)}, got {tuple(weight.shape)}"
                )
        for layer, weight in ((self.down, down_weight), (self.up, up_weight)):
            layer.weight = nn.Parameter(weight.to(device=layer.device, dtype=layer.dtype), layer.weight.requires_grad)

    def auto_attach(
        self, target: fl.Chain, include: list[str] | None = None, exclude: list[str] | None = None
    ) -> tuple[LoraAdapter, fl.Chain | None] | None:
        """Find the first free layer below a chain that the update fits; see `auto_attach_loras` for whole sets.

        Args:
            target: Where to look.
            include: If given, only layers with an ancestor of one of these class names.
            exclude: No layers with an ancestor of one of these class names.

        Returns:
            The adapter of the layer, and the chain to inject it into (`None` if the layer had an adapter already, to
            which the update was added); or `None` if no layer was found.
        """
        from refiners.fluxion.adapters.lora.attach import attach_first

        return attach_first(self, target, include, exclude)


class LinearLora(Lora[fl.Linear]):
    """The low-rank update of a linear layer.

    Args:
        name: What the update is called where several share a layer.
        in_features: The input dimension of the layer.
        out_features: Its output dimension.
        rank: The inner dimension.
        scale: The multiplier (dimensionless).
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
        in_features: int,
        out_features: int,
        rank: int = 16,
        scale: float = 1.0,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        super().__init__(name, rank=rank, scale=scale, device=device, dtype=dtype)

    @classmethod
    def from_weights(cls, name: str, /, down: Tensor, up: Tensor) -> LinearLora:
        _check_weights(down, up, ndim=2)
        if down.dtype != up.dtype or down.device != up.device:
            down = down.to(device=up.device, dtype=up.dtype)
        lora = cls.__new__(cls)  # past the constructor, which would create weights: sets have a thousand layers
        vars(lora).update(
            in_features=down.shape[1], out_features=up.shape[0], name=name, _rank=down.shape[0], _scale=1.0
        )
        fl.Chain.__init__(lora, _linear(down), _linear(up), _multiply())
        return lora

    def lora_layers(
        self, device: Device | str | None = None, dtype: DType | None = None
    ) -> tuple[fl.Linear, fl.Linear]:
        return (
            fl.Linear(self.in_features, self.rank, bias=False, device=device, dtype=dtype),
            fl.Linear(self.rank, self.out_features, bias=False, device=device, dtype=dtype),
        )

    def differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        down, up = self.scaled_factors(parameters["weight"].dtype)
        return {"weight": up @ down}

    def is_compatible(self, layer: fl.WeightedModule, /) -> bool:
        return (
            isinstance(layer, fl.Linear)
            and layer.in_features == self.in_features
            and layer.out_features == self.out_features
        )


class Conv2dLora(Lora[fl.Conv2d]):
    """The low-rank update of a convolution.

    Args:
        name: What the update is called where several share a layer.
        in_channels: The input channels of the layer.
        out_channels: Its output channels.
        rank: The inner number of channels.
        scale: The multiplier (dimensionless).
        kernel_size: The (square) kernel sizes of `down` and `up`.
        stride: Their strides.
        padding: Their paddings, in pixels.
        device: Where the weights are created.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels in_height in_width"]): The input of the layer.

    Returns:
        Float[Tensor, "batch out_channels out_height out_width"]: The update of its output.

    Raises:
        ValueError: If the rank is not positive.
    """

    def __init__(
        self,
        name: str,
        /,
        in_channels: int,
        out_channels: int,
        rank: int = 16,
        scale: float = 1.0,
        kernel_size: tuple[int, int] = (1, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 1),
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        super().__init__(name, rank=rank, scale=scale, device=device, dtype=dtype)

    @classmethod
    def from_weights(cls, name: str, /, down: Tensor, up: Tensor) -> Conv2dLora:
        _check_weights(down, up, ndim=4)
        kernel_size = (down.shape[2], up.shape[2])
        lora = cls(
            name,
            in_channels=down.shape[1],
            out_channels=up.shape[0],
            rank=down.shape[0],
            kernel_size=kernel_size,
            padding=(1 if kernel_size[0] == 3 else 0, 1 if kernel_size[1] == 3 else 0),
            device="meta",
        )
        lora.down.weight = nn.Parameter(down.to(device=up.device, dtype=up.dtype))
        lora.up.weight = nn.Parameter(up)
        return lora

    def lora_layers(
        self, device: Device | str | None = None, dtype: DType | None = None
    ) -> tuple[fl.Conv2d, fl.Conv2d]:
        down, up = (
            fl.Conv2d(
                in_channels=in_channels,
                out_channels=out_channels,
                kernel_size=self.kernel_size[index],
                stride=self.stride[index],
                padding=self.padding[index],
                use_bias=False,
                device=device,
                dtype=dtype,
            )
            for index, (in_channels, out_channels) in enumerate(
                ((self.in_channels, self.rank), (self.rank, self.out_channels))
            )
        )
        return down, up

    def differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        down, up = self.scaled_factors(parameters["weight"].dtype)
        if up.shape[2:] == (1, 1):
            return {"weight": torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)}
        return {"weight": torch.einsum("orhw,ri->oihw", up, down[:, :, 0, 0])}

    def check_mergeable(self, layer: fl.WeightedModule) -> None:
        large, small = by_size(self.down, self.up)
        steps = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        is_one = all(getattr(small, each) == value for each, value in steps.items()) and all(
            getattr(large, each) == getattr(layer, each, None) for each in steps
        )
        if not is_one:
            raise ValueError(f"LoRA {self.name!r} cannot be merged: {self.down} and {self.up} are not one like {layer}")

    def is_compatible(self, layer: fl.WeightedModule, /) -> bool:
        """Whether the channels agree, and how both go over an image; then `down` takes over the stride of the layer."""
        if not (
            isinstance(layer, fl.Conv2d)
            and layer.in_channels == self.in_channels
            and layer.out_channels == self.out_channels
            and go_like(layer, self.down, self.up)
        ):
            return False
        self.down.stride = layer.stride
        return True


def _check_weights(down: Tensor, up: Tensor, ndim: int) -> None:
    if down.ndim != ndim or up.ndim != ndim:
        raise AssertionError(f"down and up must have {ndim} dimensions, got {down.ndim} and {up.ndim}")
    if down.shape[0] != up.shape[1]:
        raise AssertionError(f"Rank mismatch: down rank={down.shape[0]} and up rank={up.shape[1]}")


def _multiply() -> fl.Multiply:
    """Make a multiplication by 1, past the bookkeeping of torch."""
    layer = fl.Multiply.__new__(fl.Multiply)
    fl.Module.__init__(layer)
    vars(layer).update(scale=1.0, bias=0.0)
    return layer


def _linear(weight: Tensor) -> fl.Linear:
    """Make a linear layer without bias around a weight."""
    layer = fl.Linear.__new__(fl.Linear)
    fl.Module.__init__(layer)
    vars(layer).update(in_features=weight.shape[1], out_features=weight.shape[0])
    layer._parameters.update(weight=nn.Parameter(weight), bias=None)
    return layer
