"""Where solvers take their random numbers from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.solvers import Solver

STOCHASTIC = {"DDPM", "DPMSolver-sde", "EulerAncestral", "LCMSolver"}


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 4, 3, 2)), generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def run(solver: Solver, x: Tensor, generator: Any = None) -> Tensor:
    """Run the solver with a prediction that depends on latents, step and nothing else of the batch."""
    for step in solver.inference_steps:
        x = solver(x, torch.tanh(solver.scale_model_input(x, step) + step / 10), step, generator=generator)
    return x


def test_each_sample_can_have_its_generator(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    x = latents(3, 4, 2, 2).to(dtype)
    together = run(make(5), x, generators(7, 8, 9))
    alone = [run(make(5), x[i : i + 1], generators(seed)) for i, seed in enumerate((7, 8, 9))]
    assert torch.equal(together, torch.cat(alone))


def test_one_generator_serves_the_batch(name: str, make: Callable[..., Solver]) -> None:
    x = latents()
    one, same, other = (run(make(5), x, generators(seed)[0]) for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (name not in STOCHASTIC)
    torch.manual_seed(7)
    assert torch.equal(run(make(5), x), one)  # the default generator draws the same


def test_generators_are_checked(make: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    with pytest.raises(ValueError, match="one item for each of the 2 samples, got 3"):
        solver(x, x, 0, generator=generators(1, 2, 3))
    with pytest.raises(TypeError, match="must be a torch.Generator or a list of them, got 42"):
        solver(x, x, 0, generator=42)  # type: ignore[arg-type]


@pytest.mark.cuda
def test_generators_of_the_cpu_give_the_same_on_each_device(make: Callable[..., Solver]) -> None:
    x = latents()
    there = run(make(5, device="cuda"), x.cuda(), generators(1, 2))
    assert_close(there.cpu(), run(make(5), x, generators(1, 2)), rtol=1e-5, atol=1e-5)
