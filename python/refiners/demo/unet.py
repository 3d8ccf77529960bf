"""The model of the demo: a small U-Net that denoises handwritten digits, told the time and the label by contexts."""

from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, device as Device, dtype as DType
from torch.nn.functional import pixel_shuffle

import refiners.fluxion.layers as fl
from refiners.fluxion.context import Contexts
from refiners.foundationals.latent_diffusion.range_adapter import RangeEncoder

WEIGHTS = Path(__file__).with_name("digits.safetensors")  # what `python -m refiners.demo.train` makes
NO_LABEL = 10  # the label that says nothing, for classifier-free guidance


def _push(residuals: list[Tensor], x: Tensor) -> None:
    residuals.append(x)


def _pop(residuals: list[Tensor]) -> Tensor:
    return residuals.pop()


def _shuffle_pixels(x: Tensor) -> Tensor:
    return pixel_shuffle(x, 2)  # [batch, 4, height, width] -> [batch, 1, 2 * height, 2 * width]


class TimestepEncoder(fl.Passthrough):
    """Encode the timestep and keep it as `diffusion.time_embedding`."""

    def __init__(self, embedding_dim: int, device: Device | str | None = None, dtype: DType | None = None) -> None:
        super().__init__(
            fl.UseContext("diffusion", "timestep"),
            RangeEncoder(64, embedding_dim, device=device, dtype=dtype),
            fl.SetContext("diffusion", "time_embedding"),
        )


class LabelEncoder(fl.Passthrough):
    """Encode the label in a few tokens, append the time embedding, and keep them as `diffusion.tokens`."""

    def __init__(
        self, num_tokens: int, embedding_dim: int, device: Device | str | None = None, dtype: DType | None = None
    ) -> None:
        super().__init__(
            fl.Concatenate(
                fl.Chain(
                    fl.UseContext("diffusion", "label"),
                    fl.Embedding(NO_LABEL + 1, num_tokens * embedding_dim, device=device, dtype=dtype),
                    fl.Reshape(num_tokens, embedding_dim),
                ),
                fl.UseContext("diffusion", "time_embedding"),
                dim=1,
            ),
            fl.SetContext("diffusion", "tokens"),
        )


class ResidualBlock(fl.Sum):
    """Two convolutions around a shift by the time embedding, and a shortcut.

    See [[arXiv:2006.11239] Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239), appendix B.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.out_channels = out_channels
        super().__init__(
            fl.Chain(
                fl.GroupNorm(in_channels, num_groups=8, device=device, dtype=dtype),
                fl.SiLU(),
                fl.Sum(
                    fl.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, device=device, dtype=dtype),
                    fl.Chain(
                        fl.UseContext("diffusion", "time_embedding"),
                        fl.SiLU(),
                        fl.Linear(embedding_dim, out_channels, device=device, dtype=dtype),
                        fl.Reshape(out_channels, 1, 1),
                    ),
                ),
                fl.GroupNorm(out_channels, num_groups=8, device=device, dtype=dtype),
                fl.SiLU(),
                fl.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, device=device, dtype=dtype),
            ),
            fl.Identity()
            if in_channels == out_channels
            else fl.Conv2d(in_channels, out_channels, kernel_size=1, device=device, dtype=dtype),
        )


class TransformerBlock(fl.Chain):
    """Attend from pixels to pixels, then from pixels to the tokens of label and time, then feed forward."""

    def __init__(
        self,
        channels: int,
        size: int,
        embedding_dim: int,
        num_heads: int = 2,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.size = size  # height and width of what comes in, in pixels
        super().__init__(
            fl.Flatten(start_dim=2),
            fl.Transpose(1, 2),
            fl.Residual(
                fl.LayerNorm(channels, device=device, dtype=dtype),
                fl.SelfAttention(channels, num_heads=num_heads, use_bias=False, device=device, dtype=dtype),
            ),
            fl.Residual(
                fl.LayerNorm(channels, device=device, dtype=dtype),
                fl.Parallel(fl.Identity(), fl.UseContext("diffusion", "tokens"), fl.UseContext("diffusion", "tokens")),
                fl.Attention(
                    channels,
                    num_heads=num_heads,
                    key_embedding_dim=embedding_dim,
                    value_embedding_dim=embedding_dim,
                    use_bias=False,
                    device=device,
                    dtype=dtype,
                ),
            ),
            fl.Residual(
                fl.LayerNorm(channels, device=device, dtype=dtype),
                fl.Linear(channels, 4 * channels, device=device, dtype=dtype),
                fl.GLU(fl.GeLU()),
                fl.Linear(2 * channels, channels, device=device, dtype=dtype),
            ),
            fl.Transpose(1, 2),
            fl.Reshape(channels, size, size),
        )


class DownBlock(fl.Chain):
    """Process one resolution and remember the result for the way up."""

    def __init__(
        self,
        channels: int,
        size: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            ResidualBlock(channels, channels, embedding_dim, device=device, dtype=dtype),
            TransformerBlock(channels, size, embedding_dim, device=device, dtype=dtype),
            fl.SetContext("unet", "residuals", callback=_push),
        )


class UpBlock(fl.Chain):
    """Process one resolution together with what the way down remembered of it."""

    def __init__(
        self,
        channels: int,
        size: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            fl.Concatenate(fl.Identity(), fl.UseContext("unet", "residuals").compose(_pop), dim=1),
            ResidualBlock(2 * channels, channels, embedding_dim, device=device, dtype=dtype),
            TransformerBlock(channels, size, embedding_dim, device=device, dtype=dtype),
        )


class DigitsUNet(fl.Chain):
    """Predict the velocity of noisy images of digits.

    Set the timestep and the label first; they are forgotten when the call ends.

    Receives:
        x (Float[Tensor, "batch 1 16 16"]): The noisy images.

    Returns:
        Float[Tensor, "batch 1 16 16"]: Their velocities; see `refiners.demo.diffusion`.
    """

    def __init__(
        self,
        channels: int = 48,
        inner_channels: int = 64,
        embedding_dim: int = 64,
        num_tokens: int = 4,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.inner_channels = inner_channels
        self.embedding_dim = embedding_dim
        self.num_tokens = num_tokens
        super().__init__(
            TimestepEncoder(embedding_dim, device=device, dtype=dtype),
            LabelEncoder(num_tokens, embedding_dim, device=device, dtype=dtype),
            fl.Conv2d(1, channels, kernel_size=3, stride=2, padding=1, device=device, dtype=dtype),
            DownBlock(channels, 8, embedding_dim, device=device, dtype=dtype),
            fl.Conv2d(channels, inner_channels, kernel_size=3, stride=2, padding=1, device=device, dtype=dtype),
            DownBlock(inner_channels, 4, embedding_dim, device=device, dtype=dtype),
            UpBlock(inner_channels, 4, embedding_dim, device=device, dtype=dtype),
            fl.ConvTranspose2d(inner_channels, channels, kernel_size=2, stride=2, device=device, dtype=dtype),
            UpBlock(channels, 8, embedding_dim, device=device, dtype=dtype),
            fl.GroupNorm(channels, num_groups=8, device=device, dtype=dtype),
            fl.SiLU(),
            fl.Conv2d(channels, 4, kernel_size=3, padding=1, device=device, dtype=dtype),
            fl.Lambda(_shuffle_pixels),
        )

    def init_context(self) -> Contexts:
        diffusion: dict[str, Any] = {"timestep": None, "label": None, "time_embedding": None, "tokens": None}
        return {"diffusion": diffusion, "unet": {"residuals": []}}

    def set_timestep(self, timestep: Float[Tensor, "batch 1"]) -> None:
        """Say how noisy the images of the next call are, from 0 (clean) to 1000 (noise alone)."""
        self.set_context("diffusion", {"timestep": timestep})

    def set_label(self, label: Int[Tensor, " batch"]) -> None:
        """Say what the images of the next call show: 0 to 9, or `NO_LABEL`."""
        self.set_context("diffusion", {"label": label})


def load_base() -> DigitsUNet:
    """Load the model that is shipped."""
    return DigitsUNet(device="meta").load_from_safetensors(WEIGHTS)
