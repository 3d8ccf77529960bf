"""Groups of parameters for optimisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora
from refiners.fluxion.adapters.lora.training import add_trainable_loras, lora_plus_groups

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
}


def test_the_second_matrix_learns_faster(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model)
    down, up = lora_plus_groups(loras.loras.values(), lr=1e-3, ratio=8.0, weight_decay=0.1, betas=(0.8, 0.9))
    assert down | {"params": None} == {"params": None, "lr": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    assert up | {"params": None} == {"params": None, "lr": 8e-3, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    layers = list(loras.loras.values())
    assert [id(p) for p in down["params"]] == [id(lora.down.weight) for lora in layers]
    assert [id(p) for p in up["params"]] == [id(lora.up.weight) for lora in layers]


def test_all_updates_of_a_model_and_their_list_have_the_same_groups(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model)
    expected = [[id(p) for p in group["params"]] for group in lora_plus_groups(loras.loras.values(), lr=1e-3)]
    assert [[id(p) for p in group["params"]] for group in lora_plus_groups(loras, lr=1e-3)] == expected


def test_a_step_of_gradient_descent(model: fl.Chain, x: Tensor) -> None:
    loras = add_trainable_loras("style", model, initialisation="pissa", rank=2)
    before = [parameter.detach().clone() for parameter in loras.parameters()]
    optimizer = torch.optim.SGD(lora_plus_groups(loras.loras.values(), lr=1e-3))
    model(x).sum().backward()
    optimizer.step()
    for index, (parameter, old) in enumerate(zip(loras.parameters(), before, strict=True)):
        assert parameter.grad is not None
        rate = 1.6e-2 if index % 2 else 1e-3
        torch.testing.assert_close(parameter.detach(), old - rate * parameter.grad)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_takes_them(
    model: fl.Chain, x: Tensor, kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    loras = add_trainable_loras("style", model)
    optimizer = kind(lora_plus_groups(loras.loras.values(), lr=1e-4, **options))
    goal, losses = torch.randn(2, 9, 5), list[float]()
    for _ in range(4):
        optimizer.zero_grad()
        loss = (model(x) - goal).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1.6e-3]


def test_what_is_not_trained_is_in_no_group() -> None:
    one, other = LinearLora("one", 3, 2), LinearLora("other", 3, 2)
    other.requires_grad_(False)
    one.down.requires_grad_(False)
    (group,) = lora_plus_groups([one, other], lr=1e-3, ratio=2.0)
    assert group["lr"] == 2e-3 and [id(p) for p in group["params"]] == [id(one.up.weight)]
    with pytest.raises(ValueError, match="none of the updates has a parameter that requires gradients"):
        lora_plus_groups([other], lr=1e-3)


def test_wrong_arguments() -> None:
    lora = LinearLora("one", 3, 2)
    with pytest.raises(ValueError, match="lr must be positive and finite, got 0"):
        lora_plus_groups([lora], lr=0)
    with pytest.raises(ValueError, match="ratio must be positive and finite, got inf"):
        lora_plus_groups([lora], lr=1e-3, ratio=float("inf"))
    with pytest.raises(TypeError, match="loras must be low-rank updates, got Linear"):
        lora_plus_groups(fl.Chain(fl.Linear(1, 1)), lr=1e-3)  # pyright: ignore[reportArgumentType]
