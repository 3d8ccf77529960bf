"""Adapt a trained classifier to inverted inputs with LoRA, and take the adaptation out again."""

import torch
import torch.nn.functional as F
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.fluxion.utils import manual_seed, no_grad


class Classifier(fl.Chain):
    """Tell in which quarter of the plane a point lies."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__(fl.Linear(2, dim), fl.SiLU(), fl.Linear(dim, dim), fl.SiLU(), fl.Linear(dim, 4))


def quarter(points: Tensor) -> Tensor:
    return (points[:, 0] > 0).long() + 2 * (points[:, 1] > 0).long()


def train(model: Classifier, parameters: list[torch.nn.Parameter], sign: float) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=2e-2)
    for _ in range(100):
        points = torch.randn(256, 2)
        optimizer.zero_grad()
        F.cross_entropy(model(sign * points), quarter(points)).backward()
        optimizer.step()


def accuracy(model: Classifier, sign: float) -> float:
    points = torch.randn(2000, 2)
    with no_grad():
        return (model(sign * points).argmax(dim=-1) == quarter(points)).float().mean().item()


manual_seed(0)
model = Classifier()
train(model, list(model.parameters()), sign=1)
model.requires_grad_(False)
print(f"trained:  {accuracy(model, 1):.0%} on points, {accuracy(model, -1):.0%} on inverted points")

adapters = [
    LoraAdapter(layer, LinearLora("inverted", layer.in_features, layer.out_features, rank=4)).inject(parent)
    for layer, parent in model.walk(fl.Linear)
]
train(model, [p for adapter in adapters for lora in adapter.lora_layers for p in lora.parameters()], sign=-1)
print(f"adapted:  {accuracy(model, 1):.0%} on points, {accuracy(model, -1):.0%} on inverted points")

for adapter in adapters:
    adapter.eject()
print(f"restored: {accuracy(model, 1):.0%} on points, {accuracy(model, -1):.0%} on inverted points")
