"""Adapters as users write them: around a chain, beside it, within it, and at the head of a U-Net."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.unet import UNet


class Around(fl.Chain, fl.Adapter[fl.Chain]):
    """Multiply what a chain returns."""

    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(target, fl.Multiply(0.75))


class Beside(fl.Sum, fl.Adapter[fl.Chain]):
    """Add something to what a chain returns."""

    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(target, fl.Chain(fl.Identity(), fl.Multiply(0.5)))


class Within(fl.Chain, fl.Adapter[fl.Chain]):
    """Append a layer to a chain, as control networks do to the blocks of a U-Net."""

    def __init__(self, target: fl.Chain) -> None:
        self._layer: list[Any] = [fl.Multiply(0.75)]
        with self.setup_adapter(target):
            super().__init__(target)

    def inject(self, parent: fl.Chain | None = None) -> Self:
        self.target.append(self._layer[0])
        return super().inject(parent)

    def eject(self) -> None:
        self.target.remove(self._layer[0])
        super().eject()


class OfAttention(fl.Chain, fl.Adapter[fl.Chain]):
    """Put something between the product of attention and the layer after it, as image prompts do."""

    def __init__(self, target: fl.Chain) -> None:
        self._products: list[Any] = []
        with self.setup_adapter(target):
            super().__init__(target)

    def inject(self, parent: fl.Chain | None = None) -> Self:
        product = self.target.ensure_find(fl.ScaledDotProductAttention)
        self._products = [product, fl.Sum(product, fl.Chain(fl.ScaledDotProductAttention(), fl.Multiply(0.25)))]
        self.target.replace(*self._products)
        return super().inject(parent)

    def eject(self) -> None:
        self.target.replace(*self._products[::-1])
        super().eject()


class Control(fl.Chain, fl.Adapter[UNet]):
    """Add to what the blocks of a U-Net pass on, by layers at its head, as control networks do."""

    def __init__(self, target: UNet) -> None:
        conv = fl.Conv2d(4, 4, 1)
        self._network: list[Any] = [fl.Passthrough(conv, fl.Lambda(self._add))]
        with self.setup_adapter(target):
            super().__init__(target)

    def _add(self, x: Any) -> Any:
        residuals = self.target.use_context("unet")["residuals"]
        residuals[0] = residuals[0] + 0.1
        return x

    def inject(self, parent: fl.Chain | None = None) -> Self:
        self._network[0].to(device=self.target.device, dtype=self.target.dtype)
        self.target.insert(0, self._network[0])
        return super().inject(parent)

    def eject(self) -> None:
        self.target.remove(self._network[0])
        super().eject()
