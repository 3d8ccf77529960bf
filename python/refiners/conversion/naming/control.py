"""The names of the layers of ControlNets and Control-LoRAs: half a U-Net, an encoder of the condition, and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from refiners.conversion.naming.names import Name, Shapes, names
from refiners.conversion.naming.unet import (
    SD15,
    SDXL,
    DiffusersUNet,
    LDMUNet,
    RefinersSDXLUNet,
    RefinersUNet,
    UNetLayout,
    UNetNames,
    encoder_layers,
    encoder_layout,
)


@dataclass(frozen=True)
class ControlNetLayout:
    """The structure of a ControlNet.

    Attributes:
        unet: That of the U-Net it controls.
        condition_levels: The levels of the encoder of the condition, after the first: two convolutions each.
    """

    unet: UNetLayout
    condition_levels: int = 3


SD15_CONTROLNET = ControlNetLayout(SD15)


def output_count(layout: UNetLayout) -> int:
    """Count the outputs of the way down: one for each residual block and downsampling, and one for the first layer."""
    return len(layout.depths) * (layout.blocks + 1)


class ControlNames:
    """What a library calls the layers of a ControlNet that a U-Net does not have."""

    unet: type[UNetNames]
    middle: str

    def condition(self, levels: int) -> list[str]:
        """List the convolutions of the encoder of the condition."""
        raise NotImplementedError

    def output(self, index: int) -> str:
        """Name the convolution after the block number `index` of the way down, from 0."""
        raise NotImplementedError


class DiffusersControl(ControlNames):
    """The names of diffusers."""

    unet = DiffusersUNet
    middle = "controlnet_mid_block"

    def condition(self, levels: int) -> list[str]:
        encoder = "controlnet_cond_embedding"
        return [f"{encoder}.conv_in", *(f"{encoder}.blocks.{i}" for i in range(2 * levels)), f"{encoder}.conv_out"]

    def output(self, index: int) -> str:
        return f"controlnet_down_blocks.{index}"


class LDMControl(ControlNames):
    """The names of the original implementation."""

    unet = LDMUNet
    middle = "middle_block_out.0"

    def condition(self, levels: int) -> list[str]:
        return [f"input_hint_block.{2 * i}" for i in range(2 * levels + 2)]

    def output(self, index: int) -> str:
        return f"zero_convs.{index}.0"


def _refiners_condition(levels: int) -> list[str]:
    pairs = [f"ConditionEncoder.Chain_{2 + i // 2}.Conv2d_{1 + i % 2}" for i in range(2 * levels)]
    return ["ConditionEncoder.Chain_1.Conv2d", *pairs, "ConditionEncoder.Conv2d"]


class _RefinersControlUNet(RefinersUNet):
    middle_block = "MiddleBlock"


class RefinersControl(ControlNames):
    """The names of ours."""

    unet = _RefinersControlUNet
    middle = "MiddleBlock.Passthrough.Conv2d"

    def condition(self, levels: int) -> list[str]:
        return [f"DownBlocks.Chain_1.Residual.{layer}" for layer in _refiners_condition(levels)]

    def output(self, index: int) -> str:
        return f"DownBlocks.Chain_{index + 1}.Passthrough.Conv2d"


def _control_layers(layout: ControlNetLayout, library: ControlNames) -> Iterator[str]:
    yield from encoder_layers(layout.unet, library.unet(layout.unet.blocks))
    yield from library.condition(layout.condition_levels)
    yield from (library.output(index) for index in range(output_count(layout.unet)))
    yield library.middle


def controlnet_names(layout: ControlNetLayout, make: type[ControlNames]) -> list[Name]:
    """List the layers of a ControlNet, in the same order for every library."""
    return names(_control_layers(layout, make()))


def controlnet_layout(shapes: Shapes, make: type[ControlNames]) -> ControlNetLayout | None:
    """Read the structure of a ControlNet off the keys of a file; None if they are not those of this library."""
    library = make()
    if f"{library.middle}.weight" not in shapes:
        return None
    unet = encoder_layout(shapes, library.unet)
    if unet is None:
        return None
    for levels in count():
        if f"{library.condition(levels + 1)[-2]}.weight" not in shapes:
            return ControlNetLayout(unet, levels)
    raise AssertionError


def control_lora_keys() -> dict[str, str]:
    """Map the names of the layers that a Control-LoRA of Stable Diffusion XL changes or adds to ours.

    Normalizations have no update. Those of the U-Net have a pair of them, the others are ordinary layers.
    """
    theirs, ours = LDMUNet(), RefinersSDXLUNet()
    updated = {
        source: f"ControlLora.{target}"
        for source, target in zip(encoder_layers(SDXL, theirs), encoder_layers(SDXL, ours))
        if "Norm" not in target.rpartition(".")[2]
    }
    hints = zip(LDMControl().condition(3), _refiners_condition(3))
    outputs = [*(LDMControl().output(i) for i in range(output_count(SDXL))), LDMControl.middle]
    zeros = {source: f"ZeroConvolution_{i:02}.Conv2d" for i, source in enumerate(outputs, start=1)}
    return {**updated, **dict(hints), **zeros}
