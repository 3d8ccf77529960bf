"""The names of the layers of the U-Nets of Stable Diffusion 1.5 and XL, and of what shares their structure.

Each library has a class with the names of its blocks; one walk over the structure puts them in the same order, so that
two lists of names are a map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

from refiners.conversion.naming.names import Name, Shapes, names


@dataclass(frozen=True)
class UNetLayout:
    """The structure of a U-Net.

    Attributes:
        channels: The channels of each level, from the highest resolution to the lowest.
        depths: The transformer blocks of each attention of a level; 0 where there is none.
        middle_depth: The same for the middle block.
        blocks: The residual blocks of a level on the way down; there is one more on the way up.
        text_time: Whether pooled text and sizes are added to the timestep, as in Stable Diffusion XL.
        condition_scale: Whether the guidance scale is an input of the timestep encoder, as in LCM.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    blocks: int = 2
    text_time: bool = False
    condition_scale: bool = False

    def has_shortcut(self, level: int) -> bool:
        """Tell whether the first residual block of a level, on the way down, changes the number of channels."""
        return level > 0 and self.channels[level] != self.channels[level - 1]


SD15 = UNetLayout(channels=(320, 640, 1280, 1280), depths=(1, 1, 1, 0), middle_depth=1)
SDXL = UNetLayout(channels=(320, 640, 1280), depths=(0, 2, 10), middle_depth=10, text_time=True)


class UNetNames(ABC):
    """What a library calls the blocks of a U-Net. Levels and blocks count from 0."""

    # norm1, conv1, projection of the timestep, norm2, conv2; and the shortcut
    residual: tuple[str, str, str, str, str]
    shortcut: str
    conv_in: str
    time: tuple[str, str]
    condition_scale: str = ""
    text_time: tuple[str, str] = ("", "")
    out: tuple[str, str]

    def __init__(self, blocks: int = 2) -> None:
        self.blocks = blocks

    @abstractmethod
    def down(self, level: int, block: int) -> str: ...
    @abstractmethod
    def down_attention(self, level: int, block: int) -> str: ...
    @abstractmethod
    def downsample(self, level: int) -> str: ...
    @abstractmethod
    def middle(self, block: int) -> str: ...
    @abstractmethod
    def middle_attention(self) -> str: ...
    @abstractmethod
    def up(self, level: int, block: int) -> str: ...
    @abstractmethod
    def up_attention(self, level: int, block: int) -> str: ...
    @abstractmethod
    def upsample(self, level: int, has_attention: bool) -> str: ...

    # Attention: these names are the same in diffusers and in the original implementation.
    norm = "norm"
    proj_in = "proj_in"
    proj_out = "proj_out"
    transformer = (
        *("norm1", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
        *("norm2", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        *("norm3", "ff.net.0.proj", "ff.net.2"),
    )

    def transformer_block(self, index: int, depth: int) -> str:
        return f"transformer_blocks.{index}"


class DiffusersUNet(UNetNames):
    """The names of diffusers."""

    residual = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
    shortcut = "conv_shortcut"
    conv_in = "conv_in"
    time = ("time_embedding.linear_1", "time_embedding.linear_2")
    condition_scale = "time_embedding.cond_proj"
    text_time = ("add_embedding.linear_1", "add_embedding.linear_2")
    out = ("conv_norm_out", "conv_out")

    def down(self, level: int, block: int) -> str:
        return f"down_blocks.{level}.resnets.{block}"

    def down_attention(self, level: int, block: int) -> str:
        return f"down_blocks.{level}.attentions.{block}"

    def downsample(self, level: int) -> str:
        return f"down_blocks.{level}.downsamplers.0.conv"

    def middle(self, block: int) -> str:
        return f"mid_block.resnets.{block}"

    def middle_attention(self) -> str:
        return "mid_block.attentions.0"

    def up(self, level: int, block: int) -> str:
        return f"up_blocks.{level}.resnets.{block}"

    def up_attention(self, level: int, block: int) -> str:
        return f"up_blocks.{level}.attentions.{block}"

    def upsample(self, level: int, has_attention: bool) -> str:
        return f"up_blocks.{level}.upsamplers.0.conv"


class LDMUNet(UNetNames):
    """The names of the original implementation, in which blocks are numbered through."""

    residual = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    shortcut = "skip_connection"
    conv_in = "input_blocks.0.0"
    time = ("time_embed.0", "time_embed.2")
    condition_scale = "time_embed.cond_proj"
    text_time = ("label_emb.0.0", "label_emb.0.2")
    out = ("out.0", "out.2")

    def _input(self, level: int, block: int) -> int:
        return 1 + level * (self.blocks + 1) + block

    def _output(self, level: int, block: int) -> int:
        return level * (self.blocks + 1) + block

    def down(self, level: int, block: int) -> str:
        return f"input_blocks.{self._input(level, block)}.0"

    def down_attention(self, level: int, block: int) -> str:
        return f"input_blocks.{self._input(level, block)}.1"

    def downsample(self, level: int) -> str:
        return f"input_blocks.{self._input(level, self.blocks)}.0.op"

    def middle(self, block: int) -> str:
        return f"middle_block.{2 * block}"

    def middle_attention(self) -> str:
        return "middle_block.1"

    def up(self, level: int, block: int) -> str:
        return f"output_blocks.{self._output(level, block)}.0"

    def up_attention(self, level: int, block: int) -> str:
        return f"output_blocks.{self._output(level, block)}.1"

    def upsample(self, level: int, has_attention: bool) -> str:
        return f"output_blocks.{self._output(level, self.blocks)}.{1 + has_attention}.conv"


class RefinersUNet(LDMUNet):
    """The names of ours: chains numbered through as in the original implementation, from 1."""

    residual = (
        "Chain.GroupNorm_1",
        "Chain.RangeAdapter2d.Conv2d",
        "Chain.RangeAdapter2d.Chain.Linear",
        "Chain.GroupNorm_2",
        "Chain.Conv2d",
    )
    shortcut = "Conv2d"
    conv_in = "DownBlocks.Chain_1.Conv2d"
    time = ("TimestepEncoder.RangeEncoder.Linear_1", "TimestepEncoder.RangeEncoder.Linear_2")
    out = ("Chain.GroupNorm", "Chain.Conv2d")

    attention = "CLIPLCrossAttention"
    projection = "Conv2d"
    middle_block = "Sum.MiddleBlock"

    norm = "Chain_1.GroupNorm"
    transformer = (
        "Residual_1.LayerNorm",
        *(f"Residual_1.SelfAttention.Distribute.Linear_{i}" for i in (1, 2, 3)),
        "Residual_1.SelfAttention.Linear",
        "Residual_2.LayerNorm",
        *(f"Residual_2.Attention.Distribute.Linear_{i}" for i in (1, 2, 3)),
        "Residual_2.Attention.Linear",
        "Residual_3.LayerNorm",
        "Residual_3.Linear_1",
        "Residual_3.Linear_2",
    )

    def __init__(self, blocks: int = 2) -> None:
        super().__init__(blocks)
        self.proj_in = f"Chain_1.{self.projection}"
        self.proj_out = f"Chain_3.{self.projection}"

    def transformer_block(self, index: int, depth: int) -> str:
        return "Chain_2.CrossAttentionBlock" + (f"_{index + 1}" if depth > 1 else "")

    def _down_chain(self, level: int, block: int) -> str:
        return f"DownBlocks.Chain_{self._input(level, block) + 1}"

    def _up_chain(self, level: int, block: int) -> str:
        return f"UpBlocks.Chain_{self._output(level, block) + 1}"

    def down(self, level: int, block: int) -> str:
        return f"{self._down_chain(level, block)}.ResidualBlock"

    def down_attention(self, level: int, block: int) -> str:
        return f"{self._down_chain(level, block)}.{self.attention}"

    def downsample(self, level: int) -> str:
        return f"{self._down_chain(level, self.blocks)}.Downsample.Conv2d"

    def middle(self, block: int) -> str:
        return f"{self.middle_block}.ResidualBlock_{block + 1}"

    def middle_attention(self) -> str:
        return f"{self.middle_block}.{self.attention}"

    def up(self, level: int, block: int) -> str:
        return f"{self._up_chain(level, block)}.ResidualBlock"

    def up_attention(self, level: int, block: int) -> str:
        return f"{self._up_chain(level, block)}.{self.attention}"

    def upsample(self, level: int, has_attention: bool) -> str:
        return f"{self._up_chain(level, self.blocks)}.Upsample.Conv2d"


class RefinersSDXLUNet(RefinersUNet):
    """The names of our Stable Diffusion XL."""

    time = (
        "TimestepEncoder.Sum.Chain.RangeEncoder.Linear_1",
        "TimestepEncoder.Sum.Chain.RangeEncoder.Linear_2",
    )
    condition_scale = "TimestepEncoder.Sum.Chain.RangeEncoder.ConditionScaleBlock.Linear"
    text_time = ("TimestepEncoder.Sum.TextTimeEmbedding.Linear_1", "TimestepEncoder.Sum.TextTimeEmbedding.Linear_2")
    out = ("OutputBlock.GroupNorm", "OutputBlock.Conv2d")
    attention = "SDXLCrossAttention"
    projection = "Linear"
    middle_block = "MiddleBlock"


MakeNames: TypeAlias = Callable[[int], UNetNames]


def residual_layers(library: UNetNames, block: str, shortcut: bool) -> Iterator[str]:
    """Yield the layers of a residual block."""
    yield from (f"{block}.{layer}" for layer in library.residual)
    if shortcut:
        yield f"{block}.{library.shortcut}"


def attention_layers(library: UNetNames, attention: str, depth: int) -> Iterator[str]:
    """Yield the layers of an attention with its transformer blocks; none where `depth` is 0."""
    if depth == 0:
        return
    yield f"{attention}.{library.norm}"
    yield f"{attention}.{library.proj_in}"
    for index in range(depth):
        block = f"{attention}.{library.transformer_block(index, depth)}"
        yield from (f"{block}.{layer}" for layer in library.transformer)
    yield f"{attention}.{library.proj_out}"


def encoder_layers(layout: UNetLayout, library: UNetNames) -> Iterator[str]:
    """Yield the layers of the timestep encoder, of the way down, and of the middle block."""
    yield from library.time
    if layout.condition_scale:
        yield library.condition_scale
    if layout.text_time:
        yield from library.text_time
    yield library.conv_in
    for level, depth in enumerate(layout.depths):
        for block in range(layout.blocks):
            shortcut = block == 0 and layout.has_shortcut(level)
            yield from residual_layers(library, library.down(level, block), shortcut)
            yield from attention_layers(library, library.down_attention(level, block), depth)
        if level + 1 < len(layout.depths):
            yield library.downsample(level)
    yield from residual_layers(library, library.middle(0), shortcut=False)
    yield from attention_layers(library, library.middle_attention(), layout.middle_depth)
    yield from residual_layers(library, library.middle(1), shortcut=False)


def decoder_layers(layout: UNetLayout, library: UNetNames) -> Iterator[str]:
    """Yield the layers of the way up and of the output."""
    for level, depth in enumerate(reversed(layout.depths)):
        for block in range(layout.blocks + 1):
            yield from residual_layers(library, library.up(level, block), shortcut=True)
            yield from attention_layers(library, library.up_attention(level, block), depth)
        if level + 1 < len(layout.depths):
            yield library.upsample(level, has_attention=depth > 0)
    yield from library.out


def unet_names(layout: UNetLayout, make: MakeNames) -> list[Name]:
    """List the layers of a U-Net, in the same order for every library."""
    library = make(layout.blocks)
    return names([*encoder_layers(layout, library), *decoder_layers(layout, library)])


def unet_layout(shapes: Shapes, make: MakeNames) -> UNetLayout | None:
    """Read the structure of a U-Net off the keys of a file; None if they are not those of this library's U-Net."""
    return encoder_layout(shapes, make) if f"{make(2).out[0]}.weight" in shapes else None


def encoder_layout(shapes: Shapes, make: MakeNames) -> UNetLayout | None:
    """Read the structure off the timestep encoder, the way down and the middle block; see `unet_layout`."""

    def first_conv(block: str) -> str:
        return f"{block}.{library.residual[1]}.weight"

    for blocks in range(1, 5):
        library = make(blocks)
        follows = first_conv(library.down(0, blocks)) in shapes
        if f"{library.downsample(0)}.weight" in shapes and first_conv(library.down(0, 0)) in shapes and not follows:
            break
    else:
        return None
    channels: list[int] = []
    depths: list[int] = []
    for level in count():
        if first_conv(library.down(level, 0)) not in shapes:
            break
        channels.append(shapes[first_conv(library.down(level, 0))][0])
        depths.append(_depth(shapes, library, library.down_attention(level, 0)))
    return UNetLayout(
        channels=tuple(channels),
        depths=tuple(depths),
        middle_depth=_depth(shapes, library, library.middle_attention()),
        blocks=blocks,
        text_time=f"{library.text_time[0]}.weight" in shapes,
        condition_scale=f"{library.condition_scale}.weight" in shapes,
    )


def _depth(shapes: Shapes, library: UNetNames, attention: str) -> int:
    """Count the transformer blocks of an attention: ours say in the name of the first whether there are others."""
    depth = 0
    for index in count():
        block = library.transformer_block(index, index + 1)
        if f"{attention}.{block}.{library.transformer[0]}.weight" in shapes:
            depth = index + 1
        elif index > 0:
            return depth
    raise AssertionError
