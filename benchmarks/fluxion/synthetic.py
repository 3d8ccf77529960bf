"""A tree of the size and shape of the SDXL U-Net, as narrow as wanted, and the LoRAs for all its linears."""

from math import gcd

import torch
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d, RangeEncoder

SDXL_WIDTH = 320  # channels of the first level; the others are multiples of it
SDXL_COUNTS = {"modules": 2883, "chains": 907, "linears": 743}


class Builder:
    """The blocks of the tree, all in one width, device and dtype.

    Args:
        width: The number of channels of the first level.
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(self, width: int, device: Device | str | None, dtype: DType | None) -> None:
        self.width = width
        self.device = device
        self.dtype = dtype
        self.text_dim = 2048 * width // SDXL_WIDTH
        self.pooled_dim = 2816 * width // SDXL_WIDTH

    def linear(self, in_features: int, out_features: int) -> fl.Linear:
        return fl.Linear(in_features, out_features, device=self.device, dtype=self.dtype)

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> fl.Conv2d:
        padding = kernel_size // 2
        return fl.Conv2d(in_channels, out_channels, kernel_size, stride, padding, device=self.device, dtype=self.dtype)

    def group_norm(self, channels: int) -> fl.GroupNorm:
        return fl.GroupNorm(channels, gcd(32, channels), device=self.device, dtype=self.dtype)

    def layer_norm(self, channels: int) -> fl.LayerNorm:
        return fl.LayerNorm(channels, device=self.device, dtype=self.dtype)

    def timestep_encoder(self) -> fl.Passthrough:
        dim = 4 * self.width
        text_time = fl.Chain(
            fl.Concatenate(
                fl.UseContext("diffusion", "pooled_text_embedding"),
                fl.Chain(
                    fl.UseContext("diffusion", "time_ids"), fl.Unsqueeze(-1), fl.Lambda(torch.sin), fl.Reshape(-1)
                ),
                dim=1,
            ),
            fl.Converter(set_device=False),
            self.linear(self.pooled_dim, dim),
            fl.SiLU(),
            self.linear(dim, dim),
        )
        encoder = RangeEncoder(self.width, dim, device=self.device, dtype=self.dtype)
        return fl.Passthrough(
            fl.Sum(fl.Chain(fl.UseContext("diffusion", "timestep"), encoder), text_time),
            fl.SetContext("range_adapter", "timestep_embedding"),
        )

    def residual_block(self, in_channels: int, out_channels: int) -> fl.Sum:
        conv = self.conv(in_channels, out_channels)
        body = fl.Chain(
            self.group_norm(in_channels),
            fl.SiLU(),
            conv,
            self.group_norm(out_channels),
            fl.SiLU(),
            self.conv(out_channels, out_channels),
        )
        RangeAdapter2d(
            conv, out_channels, 4 * self.width, "timestep_embedding", device=self.device, dtype=self.dtype
        ).inject(body)
        same = in_channels == out_channels
        return fl.Sum(body, fl.Identity() if same else self.conv(in_channels, out_channels, kernel_size=1))

    def transformer_block(self, dim: int, heads: int) -> fl.Chain:
        self_attention = fl.SelfAttention(dim, num_heads=heads, use_bias=False, device=self.device, dtype=self.dtype)
        cross_attention = fl.Attention(
            dim,
            num_heads=heads,
            key_embedding_dim=self.text_dim,
            value_embedding_dim=self.text_dim,
            use_bias=False,
            device=self.device,
            dtype=self.dtype,
        )
        text = ("cross_attention_block", "clip_text_embedding")
        return fl.Chain(
            fl.Residual(self.layer_norm(dim), self_attention),
            fl.Residual(
                self.layer_norm(dim),
                fl.Parallel(fl.Identity(), fl.UseContext(*text), fl.UseContext(*text)),
                cross_attention,
            ),
            fl.Residual(self.layer_norm(dim), self.linear(dim, 8 * dim), fl.GLU(fl.GeLU()), self.linear(4 * dim, dim)),
        )

    def transformer(self, channels: int, layers: int) -> fl.Residual:
        heads = max(1, channels // 64)
        return fl.Residual(
            fl.Chain(
                self.group_norm(channels),
                fl.Chain(fl.SetContext("flatten", "sizes"), fl.Flatten(2)),
                fl.Transpose(1, 2),
                self.linear(channels, channels),
            ),
            fl.Chain(self.transformer_block(channels, heads) for _ in range(layers)),
            fl.Chain(
                self.linear(channels, channels),
                fl.Transpose(1, 2),
                fl.Parallel(fl.Identity(), fl.UseContext("flatten", "sizes")),
                fl.Unflatten(2),
            ),
        )

    def downsample(self, channels: int) -> fl.Chain:
        return fl.Downsample(channels, 2, padding=1, device=self.device, dtype=self.dtype)

    def upsample(self, channels: int) -> fl.Chain:
        return fl.Upsample(channels, device=self.device, dtype=self.dtype)

    def accumulator(self) -> fl.Passthrough:
        return fl.Passthrough(fl.Residual(fl.UseContext("unet", "residuals")), fl.SetContext("unet", "residuals"))

    def concatenator(self) -> fl.Chain:
        return fl.Chain(fl.Concatenate(fl.Identity(), fl.UseContext("unet", "residuals"), dim=1))


class SyntheticUNet(fl.Chain):
    """A tree with the chains, leaves and nesting of the SDXL U-Net; made to be built, printed and adapted.

    Args:
        width: The number of channels of the first level, 320 for the real sizes.
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(self, width: int = 16, device: Device | str | None = None, dtype: DType | None = None) -> None:
        build = Builder(width, device, dtype)
        one, two, four = width, 2 * width, 4 * width
        super().__init__(
            build.timestep_encoder(),
            self._down_blocks(build, one, two, four),
            fl.Chain(build.residual_block(four, four), build.transformer(four, 10), build.residual_block(four, four)),
            fl.Residual(fl.UseContext("unet", "residuals")),
            self._up_blocks(build, one, two, four),
            fl.Chain(build.group_norm(one), fl.SiLU(), build.conv(one, 4)),
        )

    def init_context(self) -> dict[str, dict[str, object]]:
        return {
            "unet": {"residuals": [0.0] * 10},
            "diffusion": {"timestep": None, "time_ids": None, "pooled_text_embedding": None},
            "range_adapter": {"timestep_embedding": None},
            "sampling": {"shapes": []},
        }

    @staticmethod
    def _down_blocks(build: Builder, one: int, two: int, four: int) -> fl.Chain:
        levels: list[list[fl.Module]] = [
            [build.conv(4, one)],
            [build.residual_block(one, one)],
            [build.residual_block(one, one)],
            [build.downsample(one)],
            [build.residual_block(one, two), build.transformer(two, 2)],
            [build.residual_block(two, two), build.transformer(two, 2)],
            [build.downsample(two)],
            [build.residual_block(two, four), build.transformer(four, 10)],
            [build.residual_block(four, four), build.transformer(four, 10)],
        ]
        return fl.Chain(fl.Chain(*level, build.accumulator()) for level in levels)

    @staticmethod
    def _up_blocks(build: Builder, one: int, two: int, four: int) -> fl.Chain:
        levels: list[list[fl.Module]] = [
            [build.residual_block(2 * four, four), build.transformer(four, 10)],
            [build.residual_block(2 * four, four), build.transformer(four, 10)],
            [build.residual_block(four + two, four), build.transformer(four, 10), build.upsample(four)],
            [build.residual_block(four + two, two), build.transformer(two, 2)],
            [build.residual_block(2 * two, two), build.transformer(two, 2)],
            [build.residual_block(two + one, two), build.transformer(two, 2), build.upsample(two)],
            [build.residual_block(two + one, one)],
            [build.residual_block(2 * one, one)],
            [build.residual_block(2 * one, one)],
        ]
        return fl.Chain(fl.Chain(build.concatenator(), *level) for level in levels)


def count(model: fl.Chain) -> dict[str, int]:
    """Count the modules, chains and linears of a tree."""
    modules = list(model.modules())
    return {
        "modules": len(modules),
        "chains": sum(isinstance(module, fl.Chain) for module in modules),
        "linears": sum(isinstance(module, fl.Linear) for module in modules),
    }


def lora_tensors(model: fl.Chain, rank: int = 16) -> dict[str, Tensor]:
    """Create a pair of LoRA weights for each linear of a model, as they are found in a file."""
    tensors: dict[str, Tensor] = {}
    for index, linear in enumerate(model.layers(fl.Linear)):
        weight = linear.weight
        tensors[f"unet_{index:03}.lora_down.weight"] = torch.zeros_like(weight[:1]).expand(rank, -1).contiguous()
        tensors[f"unet_{index:03}.lora_up.weight"] = torch.zeros_like(weight[:, :1]).expand(-1, rank).contiguous()
    return tensors
