"""One structural copy per thread makes concurrent calls safe."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter

THREADS, CALLS = 8, 250


class Net(fl.Chain):
    """Every way in which a call leaves values behind: entries, lists, and a context of its own further down."""

    def __init__(self) -> None:
        super().__init__(
            fl.SetContext("net", "x"),
            fl.SetContext("net", "residuals", callback=lambda residuals, x: residuals.append(x)),
            fl.Chain(fl.Linear(4, 4), Local(fl.SetContext("local", "y"), fl.Identity(), fl.UseContext("local", "y"))),
            fl.Sum(fl.Identity(), fl.UseContext("net", "x")),
            fl.Sum(fl.Identity(), fl.UseContext("net", "residuals").compose(lambda residuals: residuals.pop())),
            fl.Sum(fl.Identity(), fl.UseContext("set", "value")),
        )

    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"net": {"x": None, "residuals": []}}


class Local(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"local": {"y": None}}


def test_eight_threads_with_a_copy_each_give_no_wrong_result() -> None:
    net = Net()
    lora = LinearLora("lora", 4, 4, rank=2)
    torch.nn.init.normal_(lora.up.weight)
    linear = net.ensure_find(fl.Linear)
    LoraAdapter(linear, lora).inject(net)
    net.requires_grad_(False)
    weight = linear.weight + lora.up.weight @ lora.down.weight
    start = Barrier(THREADS)

    def expected(x: Tensor, value: float) -> Tensor:
        return x @ weight.T + linear.bias + 2 * x + value

    def work(index: int) -> int:
        copy = net.structural_copy()
        generator = torch.Generator().manual_seed(index)
        wrong = 0
        start.wait()
        for _ in range(CALLS):
            x = torch.randn(1, 4, generator=generator)
            copy.set_context("set", {"value": float(index)})
            wrong += not torch.allclose(copy(x), expected(x, index), atol=1e-5)
            wrong += copy.use_context("net")["x"] is not None
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) == 0


def test_copies_made_at_the_same_time_are_whole() -> None:
    net = Net()

    def work(_index: int) -> bool:
        copy = net.structural_copy()
        parents = [module.parent for module in copy.modules() if isinstance(module, fl.ContextModule)]
        return len(list(copy.modules())) == len(list(net.modules())) and parents.count(None) == 1

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(200)))
    assert all(child.parent is net for child in net if isinstance(child, fl.ContextModule))
