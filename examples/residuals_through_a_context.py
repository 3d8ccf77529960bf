"""A small U-shaped network whose skip connections go through a context, compiled to one graph."""

import torch
from torch import Tensor

import refiners.fluxion.layers as fl


class Down(fl.Chain):
    """Convolve, keep the result for the way up, and halve the size."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            fl.Conv2d(channels, channels, 3, padding=1),
            fl.SiLU(),
            fl.SetContext("unet", "residuals", callback=append),
            fl.MaxPool2d(2),
        )


class Up(fl.Chain):
    """Double the size, and convolve together with what was kept at this size."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            fl.Upsample(channels, upsample_factor=2),
            fl.Concatenate(fl.Identity(), fl.UseContext("unet", "residuals").compose(pop), dim=1),
            fl.Conv2d(2 * channels, channels, 3, padding=1),
            fl.SiLU(),
        )


class UNet(fl.Chain):
    """Three sizes down, three sizes up."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__(
            fl.Conv2d(1, channels, 1),
            *(Down(channels) for _ in range(3)),
            fl.Conv2d(channels, channels, 3, padding=1),
            *(Up(channels) for _ in range(3)),
            fl.Conv2d(channels, 1, 1),
        )

    def init_context(self) -> dict[str, dict[str, list[Tensor]]]:
        return {"unet": {"residuals": []}}


def append(residuals: list[Tensor], x: Tensor) -> None:
    residuals.append(x)


def pop(residuals: list[Tensor]) -> Tensor:
    return residuals.pop()


torch.manual_seed(0)
unet = UNet()
image = torch.randn(2, 1, 32, 32)
with torch.no_grad():
    print(repr(unet.Down_1))
    print("image", tuple(image.shape), "->", tuple(unet(image).shape))
    explained = torch._dynamo.explain(unet)(image)
print("graphs when compiled:", explained.graph_count, "- breaks:", explained.graph_break_count)
