"""Changes of resolution."""

from __future__ import annotations

from jaxtyping import Float
from torch import Size, Tensor, device as Device, dtype as DType

from refiners.fluxion.layers.basics import Identity
from refiners.fluxion.layers.chain import Chain, Lambda, Parallel, SetContext, UseContext
from refiners.fluxion.layers.conv import Conv2d
from refiners.fluxion.layers.module import Module
from refiners.fluxion.utils import interpolate, pad


class Interpolate(Module):
    """Resize an image, as `torch.nn.functional.interpolate`.

    Args:
        mode: The algorithm: `"nearest"`, `"bilinear"`, `"bicubic"`, `"area"`, ...
        antialias: Whether to smooth when reducing, with `"bilinear"` and `"bicubic"`.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The image.
        shape (Size): The new height and width.

    Returns:
        Float[Tensor, "batch channels new_height new_width"]: The resized image.
    """

    def __init__(self, mode: str = "nearest", antialias: bool = False) -> None:
        super().__init__()
        self.mode = mode
        self.antialias = antialias

    def forward(
        self, x: Float[Tensor, "batch channels height width"], shape: Size
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        return interpolate(x, size=shape, mode=self.mode, antialias=self.antialias)


class Downsample(Chain):
    """Reduce the resolution by a convolution with a stride.

    Args:
        channels: The number of channels, in and out.
        scale_factor: The stride.
        padding: How many pixels the convolution adds on each side; with 0, one row is added at the bottom and one
            column on the right.
        register_shape: Whether to append the height and width of the input to the list `shapes` of the context
            `sampling`, which a chain above must declare, for an `Upsample` to undo this layer.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch channels in_height in_width"]): The image.

    Returns:
        Float[Tensor, "batch channels out_height out_width"]: The smaller image.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int,
        padding: int = 0,
        register_shape: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.in_channels = channels
        self.out_channels = channels
        self.scale_factor = scale_factor
        self.padding = padding
        layers: list[Module] = []
        if register_shape:
            layers.append(SetContext("sampling", "shapes", callback=self.register_shape))
        if padding == 0:
            layers.append(Lambda(_pad_right_and_bottom))
        layers.append(
            Conv2d(channels, channels, kernel_size=3, stride=scale_factor, padding=padding, device=device, dtype=dtype)
        )
        super().__init__(layers)

    def register_shape(self, shapes: list[Size], x: Float[Tensor, "batch channels height width"]) -> None:
        """Append the height and width of an image to a list."""
        shapes.append(x.shape[2:])


class Upsample(Chain):
    """Raise the resolution by repetition of pixels, then smooth by a convolution.

    Args:
        channels: The number of channels, in and out.
        upsample_factor: The ratio of the new resolution to the old one. Without, the new height and width are removed
            from the end of the list `shapes` of the context `sampling`, where a `Downsample` has put them.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch channels in_height in_width"]): The image.

    Returns:
        Float[Tensor, "batch channels out_height out_width"]: The larger image.
    """

    def __init__(
        self,
        channels: int,
        upsample_factor: int | None = None,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.upsample_factor = upsample_factor
        super().__init__(
            Parallel(
                Identity(),
                UseContext("sampling", "shapes").compose(_pop)
                if upsample_factor is None
                else Lambda(self._scaled_shape),
            ),
            Interpolate(),
            Conv2d(channels, channels, kernel_size=3, padding=1, device=device, dtype=dtype),
        )

    def _scaled_shape(self, x: Tensor) -> Size:
        assert self.upsample_factor is not None  # this method is in the tree only if there is a factor
        return Size([size * self.upsample_factor for size in x.shape[2:]])


# Functions of the module rather than lambdas, so that the layers can be pickled; plain annotations, as trees show them.


def _pad_right_and_bottom(x: Tensor) -> Tensor:
    return pad(x, (0, 1, 0, 1))


def _pop(shapes: list[Size]) -> Size:
    return shapes.pop()
