"""What is measured: one function per budget, each giving its results."""

import subprocess
import sys
from collections.abc import Callable

import torch
from measure import Stopwatch, Timing
from report import Result
from synthetic import SDXL_WIDTH, SyntheticUNet, lora_tensors
from torch import nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Lora, auto_attach_loras

DEPTH, CHILDREN = 5, 3
LEAVES = CHILDREN**DEPTH
IMPORTS = """
from time import {clock}
import torch
start = {clock}()
import refiners.fluxion.layers
print({clock}() - start)
"""


def forward(watch: Stopwatch) -> list[Result]:
    """Nested chains of identities against nested and flat sequentials of the same leaves."""
    x = torch.zeros(1)

    def nested(container: Callable[..., nn.Module], leaf: Callable[[], nn.Module], depth: int = DEPTH) -> nn.Module:
        if depth == 0:
            return leaf()
        return container(*(nested(container, leaf, depth - 1) for _ in range(CHILDREN)))

    models = {
        "chain": nested(fl.Chain, fl.Identity),
        "nested": nested(nn.Sequential, nn.Identity),
        "flat": nn.Sequential(*(nn.Identity() for _ in range(LEAVES))),
    }
    functions = {name: lambda model=model: model(x) for name, model in models.items()}
    timings = watch.in_turns(functions, rounds=60, calls=50)
    return [
        _micro("chain of identities, per leaf", timings["chain"], LEAVES),
        _micro("nested torch.nn.Sequential, per leaf", timings["nested"], LEAVES),
        _micro("flat torch.nn.Sequential, per leaf", timings["flat"], LEAVES),
        _ratio("chain / nested Sequential", timings["chain"], timings["nested"], budget=1.2),
        _ratio("chain / flat Sequential", timings["chain"], timings["flat"]),
    ]


def context_read(watch: Stopwatch) -> list[Result]:
    """`use_context` of a leaf, and a whole UseContext call less that of an Identity."""
    x = torch.zeros(1)
    unet = SyntheticUNet(device="meta")
    unet.set_context("diffusion", {"timestep": x})
    use = next(layer for layer in unet.layers(fl.UseContext) if layer.key == "timestep")
    identity = unet.ensure_find(fl.Identity)
    functions = {
        "read": lambda: use.use_context("diffusion"),
        "call": lambda: use(x),
        "identity": lambda: identity(x),
        "nothing": lambda: None,
    }
    timings = watch.in_turns(functions, rounds=60, calls=5000)
    return [
        _difference("use_context of a leaf", timings["read"], timings["nothing"], budget=0.5),
        _difference("UseContext call less Identity call", timings["call"], timings["identity"], budget=0.5),
    ]


def context_write(watch: Stopwatch) -> list[Result]:
    """`set_context` on a tree of 900 chains, at the root and in the middle."""
    unet = SyntheticUNet(device="meta")
    value = torch.zeros(1)
    middle = unet.layer((1, 4), fl.Chain)
    functions = {
        "root": lambda: unet.set_context("diffusion", {"timestep": value}),
        "undeclared": lambda: unet.set_context("cross_attention_block", {"clip_text_embedding": value}),
        "middle": lambda: middle.set_context("own", {"value": value}),
    }
    timings = watch.in_turns(functions, rounds=60, calls=500)
    return [
        _micro("set_context at the root of 907 chains", timings["root"], budget=20),
        _micro("set_context at the root, undeclared name", timings["undeclared"], budget=20),
        _micro("set_context in the middle of 907 chains", timings["middle"], budget=20),
    ]


def attach(watch: Stopwatch) -> list[Result]:
    """Create and attach a LoRA for each of the 743 linears of the tree, sanity check included."""
    results: list[Result] = []
    for name, width, device in (("CPU, small channels", 16, "cpu"), ("meta, real channels", SDXL_WIDTH, "meta")):
        tensors = lora_tensors(SyntheticUNet(width, device=device))
        timing = watch.on_fresh(
            lambda width=width, device=device: SyntheticUNet(width, device=device),
            lambda unet, tensors=tensors: auto_attach_loras(Lora.from_dict("lora", tensors), unet),
            rounds=12,
        )
        results.append(_milli(f"create and attach 743 LoRAs, {name}", timing, budget=100))
    return results


def importing(watch: Stopwatch) -> list[Result]:
    """`import refiners.fluxion.layers` once torch is imported, each time in a new process."""

    def once() -> float:
        program = IMPORTS.format(clock=watch.clock.__name__)
        output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return float(output.stdout)

    once()  # writes the bytecode
    timing = Timing([once() for _ in range(watch.rounds(15))])
    return [Result("import refiners.fluxion.layers over torch", "s", timing.best, timing.median, budget=0.1)]


def printing(watch: Stopwatch) -> list[Result]:
    """`repr` of the tree: the first seven levels of 2,883 modules."""
    unet = SyntheticUNet(device="meta")
    timings = watch.in_turns({"repr": lambda: repr(unet)}, rounds=15)
    return [_milli("repr of 2,883 modules", timings["repr"], budget=100)]


def appending(watch: Stopwatch) -> list[Result]:
    """1,600 appends to one chain: of leaves, and of empty chains."""

    def append_all(children: list[fl.Module]) -> None:
        chain = fl.Chain()
        for child in children:
            chain.append(child)

    leaves = watch.on_fresh(lambda: [fl.Identity() for _ in range(1600)], append_all, rounds=15)
    chains = watch.on_fresh(lambda: [fl.Chain() for _ in range(1600)], append_all, rounds=15)
    return [_milli("1,600 appends of leaves", leaves, 50), _milli("1,600 appends of chains", chains, 50)]


def failing(watch: Stopwatch) -> list[Result]:
    """An error eight levels deep in the tree, from the call to the caught exception."""

    def fail(_x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("failed on purpose")

    def call(model: nn.Module) -> None:
        try:
            model(torch.zeros(1))
        except RuntimeError:
            return
        raise AssertionError("the model did not fail")

    branch: fl.Module = fl.Lambda(fail)
    for _ in range(7):
        branch = fl.Chain(branch)
    unet = SyntheticUNet(device="meta")
    unet.insert(0, branch)
    timings = watch.in_turns({"error": lambda: call(unet)}, rounds=15, calls=5)
    return [_milli("error at depth 8 of 2,883 modules", timings["error"], budget=10)]


def copying(watch: Stopwatch) -> list[Result]:
    """A structural copy of the tree."""
    unet = SyntheticUNet(device="meta")
    timings = watch.in_turns({"copy": unet.structural_copy}, rounds=15)
    return [_milli("structural_copy of 2,883 modules", timings["copy"])]


CASES: dict[str, Callable[[Stopwatch], list[Result]]] = {
    function.__name__: function
    for function in (
        forward,
        context_read,
        context_write,
        attach,
        importing,
        printing,
        appending,
        failing,
        copying,
    )
}


def _micro(name: str, timing: Timing, per: int = 1, budget: float | None = None) -> Result:
    return Result(name, "us", timing.best / per * 1e6, timing.median / per * 1e6, budget)


def _milli(name: str, timing: Timing, budget: float | None = None) -> Result:
    return Result(name, "ms", timing.best * 1e3, timing.median * 1e3, budget)


def _ratio(name: str, timing: Timing, baseline: Timing, budget: float | None = None) -> Result:
    return Result(name, "x", timing.best / baseline.best, timing.median / baseline.median, budget)


def _difference(name: str, timing: Timing, baseline: Timing, budget: float | None = None) -> Result:
    best, middle = timing.best - baseline.best, timing.median - baseline.median
    return Result(name, "us", best * 1e6, middle * 1e6, budget)
