"""What trainers do with updates: accumulate, checkpoint, compile, wrap, scale, copy, and go on from a file."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training import TrainableLoras, add_trainable_loras
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors

Randomize = Callable[[TrainableLoras], None]
OPTIONS: list[dict[str, Any]] = [{}, {"alpha": 1.0, "rank_stabilized": True}, {"initialisation": "pissa"}]


@pytest.fixture(params=OPTIONS, ids=str)
def loras(model: fl.Chain, randomize: Randomize, request: pytest.FixtureRequest) -> TrainableLoras:
    made = add_trainable_loras("style", model, rank=2, **request.param)
    randomize(made)
    return made


def gradients(loras: TrainableLoras) -> list[Tensor]:
    found = [parameter.grad for parameter in loras.parameters()]
    assert all(grad is not None and grad.any() for grad in found)
    for parameter in loras.parameters():
        parameter.grad = None
    return [grad for grad in found if grad is not None]


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected) > 0
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_gradients_of_parts_of_a_batch_add_up(model: fl.Chain, loras: TrainableLoras, x: Tensor) -> None:
    model(x).square().sum().backward()
    expected = gradients(loras)
    for part in x.split(1):
        model(part).square().sum().backward()
    assert_close(gradients(loras), expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing(model: fl.Chain, x: Tensor, randomize: Randomize, reentrant: bool, dropout: float) -> None:
    loras = add_trainable_loras("style", model, rank=2, dropout=dropout)
    randomize(loras)
    x.requires_grad_()  # of a tree whose input requires none, a reentrant checkpoint has no gradients
    torch.manual_seed(0)
    model(x).square().sum().backward()
    expected = gradients(loras)
    torch.manual_seed(0)
    y: Any = x
    for block in model:
        y = checkpoint(block, y, use_reentrant=reentrant)
    y.square().sum().backward()
    assert_close(gradients(loras), expected)


def test_a_compiled_tree_is_trained_as_one_graph(model: fl.Chain, x: Tensor, randomize: Randomize) -> None:
    torch.compiler.reset()
    loras = add_trainable_loras("style", model, rank=2, alpha=1.0, initialisation="pissa")
    randomize(loras)
    model(x).square().sum().backward()
    expected = gradients(loras)
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    assert_close(gradients(loras), expected)


def test_a_compiled_tree_in_16_bits_with_master_weights(model: fl.Chain, x: Tensor, randomize: Randomize) -> None:
    torch.compiler.reset()
    loras = add_trainable_loras("style", model.to(torch.bfloat16), rank=2)
    randomize(loras)
    x = x.to(torch.bfloat16)
    model(x).square().sum().backward()
    expected = gradients(loras)
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for mine, other in zip(gradients(loras), expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()


def test_wrappers_find_what_to_train(model: fl.Chain, loras: TrainableLoras, x: Tensor) -> None:
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in found} == {id(p) for p in loras.parameters()}
    assert len(found) == len(loras.parameters()) == len({id(p) for p in found})
    assert all(parameter.is_leaf and type(parameter) is nn.Parameter for parameter in found)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_a_grad_scaler_unscales_and_steps(
    model: fl.Chain, x: Tensor, dtype: torch.dtype, autocast: bool, randomize: Randomize
) -> None:
    if not autocast:
        model.to(dtype)
        x = x.to(dtype)
    loras = add_trainable_loras("style", model, rank=2)
    randomize(loras)
    with torch.autocast("cpu", dtype, enabled=autocast):
        model(x).float().square().mean().backward()
    expected = gradients(loras)
    before = [parameter.detach().clone() for parameter in loras.parameters()]
    optimizer = torch.optim.SGD(loras.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with torch.autocast("cpu", dtype, enabled=autocast):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    grads = [parameter.grad for parameter in loras.parameters()]
    scaler.step(optimizer)
    scaler.update()
    for parameter, old, grad, other in zip(loras.parameters(), before, grads, expected, strict=True):
        assert grad is not None and grad.dtype == torch.float32
        assert (grad - other).norm() < 0.02 * other.norm()
        torch.testing.assert_close(parameter.detach(), old - 0.5 * grad)


def test_what_is_copied_or_pickled_trains_for_itself(model: fl.Chain, loras: TrainableLoras, x: Tensor) -> None:
    expected = model(x).detach()
    for chain, copied in (copy.deepcopy((model, loras)), pickle.loads(pickle.dumps((model, loras)))):
        assert torch.equal(chain(x), expected)
        assert {id(p) for p in chain.parameters() if p.requires_grad} == {id(p) for p in copied.parameters()}
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
        chain(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(chain(x), expected) and torch.equal(model(x), expected)
        copied.eject()
        assert all(parameter.requires_grad for parameter in chain.parameters())
        assert copied.adapters == [] and len(loras.adapters) == 5
    assert not all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_goes_on_from_a_file(
    model: fl.Chain, x: Tensor, options: dict[str, Any], randomize: Randomize, tmp_path: Any
) -> None:
    loras = add_trainable_loras("style", model, rank=2, **options)
    randomize(loras)
    expected = model(x)
    save_to_safetensors(tmp_path / "state.safetensors", loras.state_dict())
    loras.eject()
    again = add_trainable_loras("style", model, rank=2, generator=Generator().manual_seed(5), **options)
    parameters = again.parameters()
    for buffer in model.buffers():  # where PiSSA began is read too
        buffer.zero_()
    again.load_state_dict(load_from_safetensors(tmp_path / "state.safetensors"))
    assert torch.equal(model(x), expected)
    assert all(
        one is other for one, other in zip(again.parameters(), parameters, strict=True)
    )  # an optimiser has them already


def test_a_state_that_does_not_fit_is_not_loaded(model: fl.Chain, x: Tensor, randomize: Randomize) -> None:
    loras = add_trainable_loras("style", model, rank=2, alpha=2.0)
    randomize(loras)
    expected = model(x)
    state = {key: 2 * value for key, value in loras.state_dict().items()}
    key = "Head.Linear_1"
    state["other"] = state.pop(f"{key}.down")
    state[f"{key}.up"] = torch.zeros(6, 3)
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        loras.load_state_dict(state)
    for line in (
        "tensors do not fit (8), nothing was loaded:",
        f"{key}.down is missing",
        "other is not expected",
        rf"{key}.up must have shape (6, 2), got (6, 3)",
        f"{key}.alpha must be 2.0, got 4.0",
    ):
        assert line in str(caught.value)
    assert torch.equal(model(x), expected)
