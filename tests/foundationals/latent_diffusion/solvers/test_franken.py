"""Schedulers of diffusers as solvers."""

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.solvers import DDIM, Euler, FrankenSolver

# Torch's tensors in numpy's functions, in diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

RATES: dict[str, Any] = {"beta_start": 8.5e-4, "beta_end": 1.2e-2, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**RATES, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "dpm": lambda: DPMSolverMultistepScheduler(**RATES),
    "euler": lambda: EulerDiscreteScheduler(**RATES),
    "euler_ancestral": lambda: EulerAncestralDiscreteScheduler(**RATES),
    "heun": lambda: HeunDiscreteScheduler(**RATES),
}


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SCHEDULERS)
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return SCHEDULERS[request.param]


def test_steps_are_bit_equal(make: Callable[[], Any]) -> None:
    solver, scheduler = FrankenSolver(make, 5, params=None, anything="ignored"), make()
    scheduler.set_timesteps(5)
    assert torch.equal(solver.timesteps, scheduler.timesteps)
    assert solver.inference_steps == list(range(len(scheduler.timesteps)))
    noise = latents()
    takes_generator = "generator" in signature(scheduler.step).parameters
    x = solver.scale_model_input(noise, step=-1)
    assert torch.equal(x, noise * scheduler.init_noise_sigma)
    expected, ours = x, torch.Generator().manual_seed(1)
    options = {"generator": torch.Generator().manual_seed(1)} if takes_generator else {}
    for step in solver.inference_steps:
        timestep = scheduler.timesteps[step]
        seen = solver.scale_model_input(x, step)
        assert torch.equal(seen, scheduler.scale_model_input(expected, timestep))
        x = solver(x, seen.sin(), step, generator=ours)
        expected = scheduler.step(seen.sin(), timestep, expected, **options).prev_sample
        assert torch.equal(x, expected)


def test_noise_is_that_of_the_scheduler(make: Callable[[], Any]) -> None:
    solver, scheduler = FrankenSolver(make, 5), make()
    scheduler.set_timesteps(5)
    image, noise = latents(), latents(1)
    noisy = solver.add_noise(image, noise, 2)
    assert torch.equal(noisy, scheduler.add_noise(image, noise, scheduler.timesteps[[2, 2]]))
    assert_close(solver.remove_noise(noisy, noise, 2), image, rtol=1e-4, atol=1e-5)
    one_by_one = torch.cat(
        [solver.add_noise(image[i : i + 1], noise[i : i + 1], step) for i, step in enumerate((2, 4))]
    )
    assert torch.equal(solver.add_noise(image, noise, [2, 4]), one_by_one)
    with pytest.raises(AssertionError, match="must have the same length, got 2, 2 and 1"):
        solver.add_noise(image, noise, [2])
    with pytest.raises(AssertionError, match="invalid step 9"):
        solver.add_noise(image, noise, [2, 9])


def test_image_to_image(make: Callable[[], Any]) -> None:
    solver, scheduler = FrankenSolver(make, 5, first_inference_step=2), make()
    scheduler.set_timesteps(5)
    x = solver.initial_latents(latents(1), latents())
    first = scheduler.timesteps[2]
    assert torch.equal(x, scheduler.add_noise(latents(), latents(1), first.reshape(1)))
    torch.manual_seed(1)
    expected = scheduler.step(x.sin(), first, x).prev_sample
    torch.manual_seed(1)
    assert torch.equal(solver(x, x.sin(), 2), expected)


def test_own_solvers_do_the_same() -> None:
    for own, name in ((DDIM(5), "ddim"), (Euler(5), "euler")):
        theirs, x, y = FrankenSolver(SCHEDULERS[name], 5), latents(), latents()
        for step in range(5):
            x, y = own(x, latents(step), step), theirs(y, latents(step), step)
            assert_close(x, y, rtol=1e-5, atol=1e-4)


def test_rebuild_makes_a_new_scheduler(make: Callable[[], Any]) -> None:
    solver = FrankenSolver(make, 5, dtype=torch.float64)
    rebuilt = solver.rebuild(7, 1)
    assert rebuilt.diffusers_scheduler is not solver.diffusers_scheduler
    assert rebuilt.num_inference_steps == 7 and rebuilt.inference_steps[0] == 1 and rebuilt.dtype == torch.float64


def test_a_copy_has_its_own_scheduler(make: Callable[[], Any]) -> None:
    solver, x = FrankenSolver(make, 5), latents()
    solver(x, x, 0)
    twin = copy.deepcopy(solver)
    assert twin.diffusers_scheduler is not solver.diffusers_scheduler
    generator, same = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(solver(x, x, 1, generator=generator), twin(x, x, 1, generator=same))


def test_misuse_is_reported() -> None:
    solver, x = FrankenSolver(SCHEDULERS["ddim"], 5), latents()
    with pytest.raises(AssertionError, match="invalid step 5: must be from 0 to 4"):
        solver(x, x, 5)
    with pytest.raises(NotImplementedError, match="only the scheduler knows"):
        solver.predict_data(x, x, 0)
    with pytest.raises(NotImplementedError, match="only the scheduler knows"):
        solver.predict_noise(x, x, 0)
    with pytest.raises(NotImplementedError, match="cannot be assigned"):
        solver.timesteps = solver.timesteps - 1


class TupleScheduler:
    init_noise_sigma = 1.0
    timesteps = torch.tensor([10, 5])

    def set_timesteps(self, num_inference_steps: int) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> tuple[Tensor]:
        return (sample,)


def test_a_scheduler_that_knows_little() -> None:
    solver, x = FrankenSolver(TupleScheduler, 2), latents()
    with pytest.raises(AssertionError, match="got a tuple"):
        solver(x, x, 0, generator=torch.Generator())
    expected = solver.cumulative_scale_factors[10] * x + solver.noise_std[10] * x  # it cannot add noise
    assert_close(solver.add_noise(x, x, 0), expected)
    assert_close(solver.remove_noise(expected, x, 0), x)


def test_a_scheduler_that_counts_takes_its_steps_in_order(make: Callable[[], Any]) -> None:
    solver, x = FrankenSolver(make, 5), latents()
    x = solver(x, x.sin(), 0)
    if make is SCHEDULERS["ddim"]:
        solver(x, x.sin(), 3)
    else:
        with pytest.raises(AssertionError, match="expected step 1, or 0 to begin anew, got 3"):
            solver(x, x.sin(), 3)
    assert torch.isfinite(solver(latents(), latents().sin(), 0)).all()
