"""What updates begin with: the distributions, and the singular vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training import TrainableLoras, add_trainable_loras


def fresh(layer: fl.Linear | fl.Conv2d, **options: Any) -> TrainableLoras:
    return add_trainable_loras("style", fl.Chain(layer), generator=Generator().manual_seed(0), **options)


def weights(loras: TrainableLoras) -> tuple[Tensor, Tensor]:
    down, up = (parameter.detach() for parameter in loras.parameters())
    return down, up


LAYERS: list[Callable[[], fl.Linear | fl.Conv2d]] = [lambda: fl.Linear(400, 30), lambda: fl.Conv2d(44, 30, 3)]


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
def test_gaussian(layer: Callable[[], Any]) -> None:
    down, up = weights(fresh(layer(), rank=20))
    assert abs(down.std().item() - 1 / 20) < 0.001 and abs(down.mean().item()) < 0.001
    assert abs((down.abs() < 1 / 20).double().mean().item() - 0.6827) < 0.02  # normal
    assert not up.any()


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
def test_kaiming(layer: Callable[[], Any]) -> None:
    made = layer()
    down, up = weights(fresh(made, rank=20, initialisation="kaiming"))
    bound = made.weight[0].numel() ** -0.5
    assert 0.99 * bound < down.max() <= bound and -bound <= down.min() < -0.99 * bound
    assert abs(down.std().item() - bound / 3**0.5) < 0.02 * bound  # uniform
    assert not up.any()


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
def test_orthogonal(layer: Callable[[], Any]) -> None:
    down, up = weights(fresh(layer(), rank=20, initialisation="orthogonal"))
    torch.testing.assert_close(down.flatten(1) @ down.flatten(1).T, torch.eye(20), atol=1e-5, rtol=0)
    assert not up.any()


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_pissa_holds_the_largest_singular_values(layer: Callable[[], Any], alpha: float | None) -> None:
    made = layer()
    before = made.weight.clone()
    loras = fresh(made, rank=6, initialisation="pissa", alpha=alpha)
    (lora,) = loras.loras.values()
    down, up = (each.flatten(1) for each in weights(loras))
    singular = torch.linalg.svdvals(before.flatten(1))
    left = before.flatten(1) - lora.multiplier * up @ down  # what the paper leaves in the layer
    torch.testing.assert_close(torch.linalg.svdvals(left)[:24], singular[6:], atol=1e-5, rtol=1e-5)
    expected = singular[:6] / lora.multiplier
    torch.testing.assert_close((down @ down.T), expected.diag(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((up.T @ up), expected.diag(), atol=1e-4, rtol=1e-4)
    assert torch.equal(made.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_are_in_float32_at_least(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for initialisation in ("gaussian", "pissa"):
        loras = fresh(fl.Linear(8, 6, dtype=dtype), rank=2, initialisation=initialisation)
        assert {tensor.dtype for lora in loras.loras.values() for tensor in lora.state_dict().values()} == {wide}
    assert {p.dtype for p in fresh(fl.Linear(8, 6, dtype=dtype), dtype=dtype).parameters()} == {dtype}


@pytest.mark.parametrize("initialisation", ["gaussian", "kaiming", "orthogonal"])
def test_a_seed_draws_the_same_numbers_in_every_dtype(initialisation: Any) -> None:
    wide = weights(fresh(fl.Linear(8, 6), rank=2, initialisation=initialisation))[0]
    for dtype in (torch.bfloat16, torch.float16):
        layer = fl.Linear(8, 6, dtype=dtype)
        short = weights(fresh(layer, rank=2, dtype=dtype, initialisation=initialisation))[0]
        assert torch.equal(short, wide.to(dtype))


def test_pissa_needs_finite_numbers() -> None:
    layer = fl.Linear(8, 6)
    layer.weight.data[2, 3] = float("nan")
    with pytest.raises(ValueError, match="Linear: the weight must be finite numbers for the initialisation 'pissa'"):
        fresh(layer, initialisation="pissa", rank=2)
    with pytest.raises(ValueError, match="Linear: the weight must be finite numbers"):
        fresh(fl.Linear(8, 6, device="meta"), initialisation="pissa", rank=2)


def test_a_model_without_values_has_updates_without_values() -> None:
    state = torch.get_rng_state()
    loras = add_trainable_loras("style", fl.Chain(fl.Linear(8, 6, device="meta")), rank=2)
    assert all(parameter.is_meta for parameter in loras.parameters())
    assert torch.equal(torch.get_rng_state(), state)
