"""Results that are used again: never a wrong one, whatever has changed since."""

from __future__ import annotations

import copy
import itertools
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.fluxion.kept import Kept
from refiners.foundationals.latent_diffusion.reuse import Reused


class Counted:
    """A linear layer, or an adapter of one, that counts its calls and the rows that it saw."""

    def __init__(self, layer: fl.Module) -> None:
        self.layer = layer
        self.rows: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(x.shape[0])
        return self.layer(x)


def linear() -> fl.Linear:
    return fl.Linear(4, 3)


def with_lora(scale: float | Tensor = 0.5) -> LoraAdapter:
    parent = fl.Chain(fl.Linear(4, 3))
    lora = LinearLora("a", 4, 3, rank=2)
    torch.nn.init.normal_(lora.up.weight)
    lora.scale = scale
    return LoraAdapter(parent.layer(0, fl.Linear), lora).inject(parent)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def test_an_unchanged_tensor_is_computed_once() -> None:
    counted, reused, x = Counted(linear()), Reused(), torch.randn(2, 4)
    results = [reused.rows(counted, x, (counted.layer,)) for _ in range(3)]
    assert counted.rows == [2]
    assert all(result is results[0] for result in results)
    assert torch.equal(results[0], counted.layer(x))


def test_rows_of_a_table_are_computed_together() -> None:
    counted, reused, table = Counted(linear()), Reused(), torch.randn(5, 4)
    expected = counted.layer(table)
    for row in (0, 3, 4):
        torch.testing.assert_close(reused.rows(counted, table[row], (counted.layer,)), expected[row])
        torch.testing.assert_close(
            reused.rows(counted, table[row].unsqueeze(0), (counted.layer,)), expected[row : row + 1]
        )
    torch.testing.assert_close(reused.rows(counted, table[1:4], (counted.layer,)), expected[1:4])
    assert counted.rows == [5]


@pytest.mark.parametrize(
    "part",
    [
        lambda table: table[::2],
        lambda table: table.flip(0)[1:3],
        lambda table: table.T[:4],
        lambda table: table.reshape(-1)[2:6],
        lambda table: table.reshape(-1)[2:10].view(2, 4),
        lambda table: table[1:3].to(torch.float64).float(),
        lambda table: table.view(2, 10)[:, :4],
        lambda table: table.as_strided((2, 4), (0, 1), 4),
    ],
)
def test_parts_that_are_no_rows_are_themselves(part: Callable[[Tensor], Tensor]) -> None:
    table, reused = torch.randn(5, 4), Reused()
    x = part(table)
    x = x if x.shape[-1] == 4 else x[..., :4]
    layer = linear()
    for _ in range(2):
        torch.testing.assert_close(reused.rows(layer, x, (layer,)), layer(x))


CHANGES: dict[str, Callable[[fl.Linear, Tensor], object]] = {
    "the input in place": lambda layer, x: x.add_(1),
    "the weight in place": lambda layer, x: layer.weight.mul_(2),
    "the bias in place": lambda layer, x: layer.bias.add_(1),
    "another weight": lambda layer, x: setattr(layer, "weight", torch.nn.Parameter(torch.randn(3, 4))),
    "no bias": lambda layer, x: setattr(layer, "bias", None),
    "a loaded state": lambda layer, x: layer.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.ones(3)}),
    "an assigned state": lambda layer, x: layer.load_state_dict(
        {"weight": torch.ones(3, 4), "bias": torch.ones(3)}, assign=True
    ),
    "a moved weight": lambda layer, x: setattr(layer.weight, "data", torch.randn(3, 4)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_change_is_seen(change: Callable[[fl.Linear, Tensor], object]) -> None:
    layer, reused, x = linear(), Reused(), torch.randn(2, 4)
    before = reused.rows(layer, x, (layer,)).clone()
    change(layer, x)
    after = reused.rows(layer, x, (layer,))
    assert not torch.equal(after, before)
    assert torch.equal(after, layer(x))


def test_a_change_of_a_lora_is_seen() -> None:
    adapter, reused, x = with_lora(), Reused(), torch.randn(2, 4)
    counted = Counted(adapter)
    lora = adapter.loras["a"]

    def result() -> Tensor:
        return reused(counted, (x,), (adapter,)).clone()

    results = [result(), result()]
    assert counted.rows == [2]
    lora.scale = 2.0
    results.append(result())
    lora.down.weight.mul_(3)
    results.append(result())
    adapter.add_lora(LinearLora("b", 4, 3, rank=2))
    torch.nn.init.normal_(adapter.loras["b"].up.weight)
    results.append(result())
    adapter.remove_lora("a")
    results.append(result())
    assert not any(torch.equal(earlier, later) for earlier, later in itertools.pairwise(results[1:]))
    assert torch.equal(results[-1], adapter(x))


def test_a_result_that_somebody_writes_into_is_computed_again() -> None:
    layer, reused, table = linear(), Reused(), torch.randn(5, 4)
    expected = layer(table)
    reused(layer, (table,), (layer,)).add_(1)
    torch.testing.assert_close(reused(layer, (table,), (layer,)), expected)
    reused.rows(layer, table[1:3], (layer,)).mul_(2)
    torch.testing.assert_close(reused.rows(layer, table[1:3], (layer,)), expected[1:3])


def test_a_result_is_dropped_with_what_it_was_made_of() -> None:
    layer, reused = linear(), Reused()
    x = torch.randn(2, 4)
    result = weakref.ref(reused(layer, (x,), (layer,)))
    assert result() is not None
    del x
    assert result() is None
    x = torch.randn(2, 4)
    result = weakref.ref(reused(layer, (x,), (layer,)))
    layer.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, assign=True)
    assert result() is None


@pytest.mark.parametrize("shape", [(2,), ()])
def test_nothing_is_kept_of_a_lora_with_a_scale_that_is_a_tensor(shape: tuple[int, ...]) -> None:
    """It may hold one number for each sample, and rows of a table are no samples."""
    adapter, reused, table = with_lora(torch.rand(shape)), Reused(), torch.randn(5, 4)
    for rows in (slice(1, 3), slice(2, 4)):
        torch.testing.assert_close(reused.rows(adapter, table[rows], (adapter,)), adapter(table[rows]))


def test_a_long_table_is_not_computed_as_a_whole() -> None:
    counted, reused, table = Counted(linear()), Reused(), torch.randn(101, 4)
    reused.rows(counted, table[3:4], (counted.layer,))
    assert counted.rows == [1]


def test_fake_tensors_are_not_kept() -> None:
    layer, reused, x = linear(), Reused(), torch.randn(2, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        reused(layer, (x,), (layer,))
    assert type(reused(layer, (x,), (layer,))) is Tensor


def test_nothing_is_kept_where_gradients_are_recorded() -> None:
    layer, reused, x = linear(), Reused(), torch.randn(2, 4)
    reused.rows(layer, x, (layer,))
    with torch.enable_grad():
        assert reused.rows(layer, x, (layer,)).requires_grad


@pytest.mark.parametrize("make", [linear, with_lora])
def test_nothing_is_kept_of_a_module_with_a_hook(make: Callable[[], fl.Module]) -> None:
    counted, reused, x = Counted(make()), Reused(), torch.randn(2, 4)
    counted.layer.register_forward_hook(lambda module, args, output: output + 1)
    reused.rows(counted, x, (counted.layer,))
    reused.rows(counted, x, (counted.layer,))
    assert counted.rows == [2, 2]


def test_nothing_is_kept_of_an_unknown_module() -> None:
    counted, reused, x = Counted(fl.Chain(linear())), Reused(), torch.randn(2, 4)
    reused.rows(counted, x, (counted.layer,))
    reused.rows(counted, x, (counted.layer,))
    assert counted.rows == [2, 2]


def test_inference_mode_and_autocast_call_the_function() -> None:
    counted, reused = Counted(linear()), Reused()
    with torch.inference_mode():
        x = torch.randn(2, 4)
        reused.rows(counted, x, (counted.layer,))
        x.add_(1)
        assert torch.equal(reused.rows(counted, x, (counted.layer,)), counted.layer(x))
    x = torch.randn(2, 4)
    plain = reused.rows(counted, x, (counted.layer,))
    with torch.autocast("cpu", torch.bfloat16):
        assert reused.rows(counted, x, (counted.layer,)).dtype == torch.bfloat16
    assert reused.rows(counted, x, (counted.layer,)) is plain


def test_vmap_sees_the_function() -> None:
    layer, reused, x = linear(), Reused(), torch.randn(3, 2, 4)
    torch.testing.assert_close(torch.vmap(lambda x: reused.rows(layer, x, (layer,)))(x), layer(x))


def test_copies_start_empty() -> None:
    layer, reused, x = linear(), Reused(), torch.randn(2, 4)
    reused.rows(layer, x, (layer,))
    for other in (copy.deepcopy(reused), pickle.loads(pickle.dumps(reused))):
        assert vars(other._kept) == vars(Kept()) and other._seen == []
