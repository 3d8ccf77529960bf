"""The names of the layers of the autoencoders of Stable Diffusion 1.5 and XL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from refiners.conversion.naming.names import Name, Shapes, names, numbered


@dataclass(frozen=True)
class AutoencoderLayout:
    """The structure of an autoencoder.

    Attributes:
        channels: The channels of each level, from the highest resolution to the lowest.
        blocks: The residual blocks of a level of the encoder; the decoder has one more.
    """

    channels: tuple[int, ...]
    blocks: int = 2

    def encoder_shortcut(self, level: int, block: int) -> bool:
        """Tell whether a residual block of the encoder changes the number of channels."""
        return block == 0 and level > 0 and self.channels[level] != self.channels[level - 1]

    def decoder_shortcut(self, level: int, block: int) -> bool:
        """The same of the decoder, whose level 0 has the lowest resolution."""
        reverse = self.channels[::-1]
        return block == 0 and level > 0 and reverse[level] != reverse[level - 1]


SD_AUTOENCODER = AutoencoderLayout(channels=(128, 256, 512, 512))


class AutoencoderNames(ABC):
    """What a library calls the blocks of an autoencoder."""

    resnet: tuple[str, str, str, str] = ("norm1", "conv1", "norm2", "conv2")
    shortcut: str
    attention: tuple[str, str, str, str, str]
    ends: tuple[str, ...]  # encoder: conv_in, norm_out, conv_out, quant_conv; decoder: post_quant_conv, and the same

    def __init__(self, levels: int = 4, blocks: int = 2) -> None:
        self.levels = levels
        self.blocks = blocks

    @abstractmethod
    def down(self, level: int, block: int) -> str: ...
    @abstractmethod
    def downsample(self, level: int) -> str: ...
    @abstractmethod
    def up(self, level: int, block: int) -> str: ...
    @abstractmethod
    def upsample(self, level: int) -> str: ...
    @abstractmethod
    def middle(self, half: str, block: int) -> str: ...
    @abstractmethod
    def middle_attention(self, half: str) -> str: ...


class DiffusersAutoencoder(AutoencoderNames):
    """The names of diffusers."""

    shortcut = "conv_shortcut"
    attention = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    ends = (
        *("encoder.conv_in", "encoder.conv_norm_out", "encoder.conv_out", "quant_conv"),
        *("post_quant_conv", "decoder.conv_in", "decoder.conv_norm_out", "decoder.conv_out"),
    )

    def down(self, level: int, block: int) -> str:
        return f"encoder.down_blocks.{level}.resnets.{block}"

    def downsample(self, level: int) -> str:
        return f"encoder.down_blocks.{level}.downsamplers.0.conv"

    def up(self, level: int, block: int) -> str:
        return f"decoder.up_blocks.{level}.resnets.{block}"

    def upsample(self, level: int) -> str:
        return f"decoder.up_blocks.{level}.upsamplers.0.conv"

    def middle(self, half: str, block: int) -> str:
        return f"{half}.mid_block.resnets.{block}"

    def middle_attention(self, half: str) -> str:
        return f"{half}.mid_block.attentions.0"


class OldDiffusersAutoencoder(DiffusersAutoencoder):
    """The names of diffusers before its attention layers were unified."""

    attention = ("group_norm", "query", "key", "value", "proj_attn")


class LDMAutoencoder(AutoencoderNames):
    """The names of the original implementation, whose attention is made of 1×1 convolutions."""

    shortcut = "nin_shortcut"
    attention = ("norm", "q", "k", "v", "proj_out")
    ends = (
        *("encoder.conv_in", "encoder.norm_out", "encoder.conv_out", "quant_conv"),
        *("post_quant_conv", "decoder.conv_in", "decoder.norm_out", "decoder.conv_out"),
    )

    def down(self, level: int, block: int) -> str:
        return f"encoder.down.{level}.block.{block}"

    def downsample(self, level: int) -> str:
        return f"encoder.down.{level}.downsample.conv"

    def up(self, level: int, block: int) -> str:
        return f"decoder.up.{self.levels - 1 - level}.block.{block}"

    def upsample(self, level: int) -> str:
        return f"decoder.up.{self.levels - 1 - level}.upsample.conv"

    def middle(self, half: str, block: int) -> str:
        return f"{half}.mid.block_{block + 1}"

    def middle_attention(self, half: str) -> str:
        return f"{half}.mid.attn_1"


class RefinersAutoencoder(AutoencoderNames):
    """The names of ours."""

    resnet = ("Chain.GroupNorm_1", "Chain.Conv2d_1", "Chain.GroupNorm_2", "Chain.Conv2d_2")
    shortcut = "Conv2d"
    attention = (
        "Residual.GroupNorm",
        *(f"Residual.SelfAttention2d.Distribute.Linear_{i}" for i in (1, 2, 3)),  # pyright: ignore[reportAssignmentType]
        "Residual.SelfAttention2d.Linear",
    )
    ends = (
        *("Encoder.Conv2d", "Encoder.Chain_2.GroupNorm", "Encoder.Chain_2.Conv2d", "Encoder.Chain_3.Conv2d"),
        *("Decoder.Conv2d_1", "Decoder.Conv2d_2", "Decoder.Chain_2.GroupNorm", "Decoder.Chain_2.Conv2d"),
    )

    def down(self, level: int, block: int) -> str:
        return f"Encoder.Chain_1.Chain_{level + 1}.{numbered('Resnet', block, self.blocks)}"

    def downsample(self, level: int) -> str:
        return f"Encoder.Chain_1.Chain_{level + 1}.Downsample.Conv2d"

    def up(self, level: int, block: int) -> str:
        return f"Decoder.Chain_1.Chain_{level + 2}.{numbered('Resnet', block, self.blocks + 1)}"

    def upsample(self, level: int) -> str:
        return f"Decoder.Chain_1.Chain_{level + 2}.Upsample.Conv2d"

    def _middle(self, half: str) -> str:
        return f"Encoder.Chain_1.Chain_{self.levels + 1}" if half == "encoder" else "Decoder.Chain_1.Chain_1"

    def middle(self, half: str, block: int) -> str:
        return f"{self._middle(half)}.Resnet_{block + 1}"

    def middle_attention(self, half: str) -> str:
        return self._middle(half)


def autoencoder_layers(layout: AutoencoderLayout, library: AutoencoderNames) -> Iterator[str]:
    """Yield the layers of an autoencoder, in the same order for every library."""

    def resnet(block: str, shortcut: bool) -> Iterator[str]:
        yield from (f"{block}.{layer}" for layer in library.resnet)
        if shortcut:
            yield f"{block}.{library.shortcut}"

    yield from library.ends
    for level in range(len(layout.channels)):
        for block in range(layout.blocks):
            yield from resnet(library.down(level, block), layout.encoder_shortcut(level, block))
        for block in range(layout.blocks + 1):
            yield from resnet(library.up(level, block), layout.decoder_shortcut(level, block))
        if level + 1 < len(layout.channels):
            yield library.downsample(level)
            yield library.upsample(level)
    for half in ("encoder", "decoder"):
        yield from resnet(library.middle(half, 0), shortcut=False)
        yield from (f"{library.middle_attention(half)}.{layer}" for layer in library.attention)
        yield from resnet(library.middle(half, 1), shortcut=False)


def autoencoder_names(layout: AutoencoderLayout, make: type[AutoencoderNames]) -> list[Name]:
    """List the layers of an autoencoder, in the same order for every library."""
    return names(autoencoder_layers(layout, make(len(layout.channels), layout.blocks)))


def autoencoder_layout(shapes: Shapes, make: type[AutoencoderNames]) -> AutoencoderLayout | None:
    """Read the structure of an autoencoder off the keys of a file; None if they are not those of this library."""
    for blocks in range(1, 5):
        library = make(blocks=blocks)
        conv = library.resnet[1]
        last, next_one = (f"{library.down(0, block)}.{conv}.weight" for block in (blocks - 1, blocks))
        if last in shapes and next_one not in shapes:
            break
    else:
        return None
    channels: list[int] = []
    for level in count():
        key = f"{library.down(level, 0)}.{conv}.weight"
        if key not in shapes:
            return None
        channels.append(shapes[key][0])
        if f"{library.downsample(level)}.weight" not in shapes:
            break
    library = make(len(channels), blocks)
    attention = f"{library.middle_attention('encoder')}.{library.attention[1]}.weight"
    return AutoencoderLayout(tuple(channels), blocks) if attention in shapes else None
