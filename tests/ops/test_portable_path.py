"""What happens in a portable path that native code calls."""

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.ops import portable_path


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_stays_one(interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Tensor:
        raise interruption

    chain, x = fl.Chain(fl.Chain(fl.Conv2d(8, 8, kernel_size=1))), torch.randn(1, 8, 4, 4)
    expected = chain(x)
    monkeypatch.setattr(torch.nn.functional, "conv2d", interrupted)
    with pytest.raises(interruption):
        chain(x)
    monkeypatch.undo()
    assert torch.equal(chain(x), expected)


def test_an_old_interruption_is_not_that_of_another_error() -> None:
    portable_path._lost.append(KeyboardInterrupt())
    with pytest.raises(ChainError, match="mat1 and mat2|x must be|weight must be"):
        fl.Chain(fl.Linear(3, 3))(torch.randn(2, 4))
    assert portable_path._lost == []


def test_an_old_interruption_is_forgotten_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> Tensor:
        raise MemoryError("API call failed")

    portable_path._lost.append(KeyboardInterrupt())
    chain = fl.Chain(fl.Conv2d(8, 8, kernel_size=1))
    monkeypatch.setattr(torch.nn.functional, "conv2d", failing)
    with pytest.raises((ChainError, MemoryError)):
        chain(torch.randn(1, 8, 4, 4))
