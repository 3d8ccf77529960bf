"""What the U-Nets of latent diffusion are made of, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.context import Context, Contexts
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d
from refiners.foundationals.latent_diffusion.residual_sum import (
    ResidualSum,
    check_channels,
    make_shortcut,
    residual_chain,
)

Attention = Callable[[int], list[fl.Module]]
"""Make the attention of a block: from the number of the resolution, 0 the highest, to one module or none."""


class ResidualBlock(ResidualSum):
    """Normalize, activate and convolve twice, and add a shortcut.

    See [[arXiv:2006.11239] Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239), appendix B.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels; if it is another one, the shortcut is a convolution.
        num_groups: In how many groups the channels are normalized.
        eps: Added to the variances.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels height width"]): The input.

    Returns:
        Float[Tensor, "batch out_channels height width"]: The output.

    Raises:
        ValueError: If one of the numbers of channels is not divisible by `num_groups`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        check_channels(in_channels, out_channels, num_groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_groups = num_groups
        self.eps = eps
        super().__init__(
            residual_chain(in_channels, out_channels, num_groups, eps, device, dtype),
            make_shortcut(in_channels, out_channels, device, dtype),
        )


class ResidualAccumulator(fl.Passthrough):
    """Add the input to an entry of the list `residuals` of the context `unet`, and pass it on.

    Whatever an adapter has put into the entry before is thereby added to what the way up receives.

    Args:
        n: The index of the entry.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The output of a block on the way down.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(
            fl.Residual(fl.UseContext("unet", "residuals").compose(self._residual)),
            fl.SetContext("unet", "residuals", callback=self._store),
        )

    def _residual(self, residuals: list[Tensor | float]) -> Tensor | float:
        return residuals[self.n]

    def _store(self, residuals: list[Tensor | float], x: Tensor) -> None:
        residuals[self.n] = x


class ResidualConcatenator(fl.Chain):
    """Concatenate the channels of the input and of an entry of the list `residuals` of the context `unet`.

    Args:
        n: The index of the entry.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The input of a block on the way up.

    Returns:
        Float[Tensor, "batch all_channels height width"]: The input, then the residual.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(
            fl.Concatenate(fl.Identity(), fl.UseContext("unet", "residuals").compose(self._residual), dim=1)
        )

    def _residual(self, residuals: list[Tensor]) -> Tensor:
        return residuals[self.n]


def last_residual(residuals: list[Tensor | float]) -> Tensor | float:
    """Return what adapters want to be added to the output of the middle block."""
    return residuals[-1]


def check_sizes(in_channels: int, channels: Sequence[int], num_groups: int) -> None:
    """Raise unless a U-Net can have these sizes."""
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if not channels or channels[0] % 2 or any(width < 1 or width % num_groups for width in channels):
        raise ValueError(
            "channels must hold a positive number for each resolution, the first even, all divisible by num_groups"
            f" {num_groups}, got {tuple(channels)}"
        )


def make_down_blocks(
    in_channels: int,
    channels: Sequence[int],
    attention: Attention,
    num_groups: int,
    device: Device | str | None,
    dtype: DType | None,
) -> Iterator[fl.Chain]:
    """Yield the blocks of the way down: a convolution, then two blocks a resolution, and `Downsample` between these."""
    current = channels[0]
    yield fl.Chain(fl.Conv2d(in_channels, current, kernel_size=3, padding=1, device=device, dtype=dtype))
    for level, width in enumerate(channels):
        if level > 0:
            yield fl.Chain(fl.Downsample(current, scale_factor=2, padding=1, device=device, dtype=dtype))
        for _ in range(2):
            yield fl.Chain(
                ResidualBlock(current, width, num_groups=num_groups, device=device, dtype=dtype), *attention(level)
            )
            current = width


def make_up_blocks(
    channels: Sequence[int],
    attention: Attention,
    num_groups: int,
    device: Device | str | None,
    dtype: DType | None,
) -> Iterator[fl.Chain]:
    """Yield the blocks of the way up, one for each of the way down; the last of a resolution ends in an `Upsample`."""
    skips = [channels[0]]  # what the blocks of the way down give, in their order
    for level, width in enumerate(channels):
        skips += [width, width] if level == len(channels) - 1 else [width, width, width]
    current = channels[-1]
    for level in reversed(range(len(channels))):
        for index in range(3):
            in_channels, current = current + skips.pop(), channels[level]
            block = fl.Chain(
                ResidualBlock(in_channels, current, num_groups=num_groups, device=device, dtype=dtype),
                *attention(level),
            )
            if index == 2 and level > 0:
                block.append(fl.Upsample(current, device=device, dtype=dtype))
            yield block


def make_middle_blocks(
    channels: int,
    attention: Callable[[], fl.Module],
    num_groups: int,
    device: Device | str | None,
    dtype: DType | None,
) -> Iterator[fl.Module]:
    """Yield the layers at the lowest resolution: an attention between two blocks."""
    yield ResidualBlock(channels, channels, num_groups=num_groups, device=device, dtype=dtype)
    yield attention()
    yield ResidualBlock(channels, channels, num_groups=num_groups, device=device, dtype=dtype)


def make_output_layers(
    channels: int, num_groups: int, device: Device | str | None, dtype: DType | None
) -> Iterator[fl.Module]:
    """Yield the layers from the highest resolution to the prediction."""
    yield fl.GroupNorm(channels, num_groups=num_groups, device=device, dtype=dtype)
    yield fl.SiLU()
    yield fl.Conv2d(channels, 4, kernel_size=3, padding=1, device=device, dtype=dtype)


class BaseTimestepEncoder(fl.Passthrough):
    """The base of what encodes the timestep: its last child writes the encoding to the context `range_adapter`."""

    @property
    def context_key(self) -> str:
        """The entry of the context `range_adapter` that is written to."""
        return self.layer("SetContext", fl.SetContext).key

    @context_key.setter
    def context_key(self, value: str) -> None:
        self.layer("SetContext", fl.SetContext).key = value


class UNet(fl.Chain):
    """The base of the U-Nets: what enters by contexts, and how the blocks are connected.

    Subclasses set `channels` and call `_connect` after the constructor.
    """

    channels: Sequence[int]
    text_embedding_dim: int
    _conditions: ClassVar[tuple[tuple[str, str], ...]] = (  # context and key; `set_<key>` sets it
        ("diffusion", "timestep"),
        ("cross_attention_block", "clip_text_embedding"),
    )

    def init_context(self) -> Contexts:
        return {
            # One for each block of the way down, and one for the middle, which only adapters fill.
            "unet": {"residuals": [0.0] * (3 * len(self.channels) + 1)},
            "diffusion": {key: None for context, key in self._conditions if context == "diffusion"},
            "range_adapter": {"timestep_embedding": None},
            "sampling": {"shapes": []},
        }

    def set_timestep(self, timestep: Shaped[Tensor, "*batch"]) -> None:
        """Set the timestep of the next call, from 0 (clean) to 999 (noise alone); it is forgotten when the call ends.

        Args:
            timestep: One for all samples or one for each, of shape `(1,)`, `(batch,)`, `(1, 1)` or `(batch, 1)`.

        Raises:
            TypeError: If it is no tensor.
            ValueError: If its shape is another one.
        """
        _check_is_tensor("timestep", timestep)
        if timestep.ndim == 2 and timestep.shape[1] == 1:
            timestep = timestep.flatten()
        check_shape("timestep", timestep, "batch")
        self.set_context("diffusion", {"timestep": timestep})

    def set_clip_text_embedding(self, clip_text_embedding: Float[Tensor, "batch tokens text_embedding_dim"]) -> None:
        """Set the text embedding that the cross attention of all following calls attends to.

        Args:
            clip_text_embedding: The embedding of each sample.

        Raises:
            TypeError: If it is no tensor of floating point.
            ValueError: If its shape is not the expected one.
        """
        check_shape("clip_text_embedding", clip_text_embedding, "batch", "tokens", self.text_embedding_dim)
        check_is_floating_point("clip_text_embedding", clip_text_embedding)
        self.set_context("cross_attention_block", {"clip_text_embedding": clip_text_embedding})

    def _connect(self, device: Device | str | None, dtype: DType | None) -> None:
        """Let the timestep reach the residual blocks, and each block of the way up hear of one of the way down."""
        adapt_residual_blocks(self, 4 * self.channels[0], "timestep_embedding", device=device, dtype=dtype)
        for n, block in enumerate(cast("Iterator[fl.Chain]", iter(self.layer("DownBlocks", fl.Chain)))):
            block.append(ResidualAccumulator(n))
        for n, block in enumerate(cast("Iterator[fl.Chain]", iter(self.layer("UpBlocks", fl.Chain)))):
            block.insert(0, ResidualConcatenator(-n - 2))

    def _hint(self, *args: Any) -> str:
        # The first residual is a batch as large as the input: what came later may have been broadcast.
        batches = [x.shape[0] for x in (self._get("unet", "residuals")[0], *args) if isinstance(x, Tensor) and x.ndim]
        if not batches:
            return ""
        batch = batches[0]
        wrong = [
            f"set_{key} got {tuple(value.shape)}"
            for context, key in self._conditions
            if isinstance(value := self._get(context, key), Tensor)
            and value.shape[0] not in (batch, 1 if key == "timestep" else batch)
        ]
        return f"the input is a batch of {batch}, but {' and '.join(wrong)}" if wrong else ""

    def _get(self, context: str, key: str) -> Any:
        values: Context = self.provider.get_context(context) or {}
        return values.get(key)


def adapt_residual_blocks(
    chain: fl.Chain,
    embedding_dim: int,
    context_key: str,
    device: Device | str | None = None,
    dtype: DType | None = None,
) -> None:
    """Shift the first convolution of each residual block by the embedding at a key of the context `range_adapter`."""
    for block in list(chain.layers(ResidualBlock)):
        layers = block.layer("Chain", fl.Chain)
        RangeAdapter2d(
            layers.layer("Conv2d_1", fl.Conv2d),
            channels=block.out_channels,
            embedding_dim=embedding_dim,
            context_key=context_key,
            device=device,
            dtype=dtype,
        ).inject(layers)


def check_shape(name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Raise unless what was given to `set_<name>` has these sizes; a word stands for any."""
    _check_is_tensor(name, tensor)
    fits = tensor.ndim == len(sizes) and all(isinstance(b, str) or a == b for a, b in zip(tensor.shape, sizes))
    if not fits:
        expected = f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
        raise ValueError(f"set_{name}: {name} must be {expected}, got {tuple(tensor.shape)}")


def check_is_floating_point(name: str, tensor: Tensor) -> None:
    """Raise unless what was given to `set_<name>` is of floating point."""
    if not tensor.is_floating_point():
        raise TypeError(f"set_{name}: {name} must be floating point, got {tensor.dtype}")


def _check_is_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"set_{name}: {name} must be a tensor, got {type(value).__name__}")
