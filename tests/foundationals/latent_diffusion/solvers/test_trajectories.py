"""Each solver with the scheduler of diffusers that does the same, over their common options.

For each number of steps, prediction and noise schedule a few combinations of the other options are drawn, always the
same.

Both run in float64 with the same table of training. Where diffusers has levels in float32 only, they are compared with
those of the solver first, and then replaced by them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from random import Random
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    LCMSolver,
    SolverParams,
    UniPC,
)

# Torch's tensors in numpy's functions, in diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STEPS = [1, 2, 3, 4, 5, 7, 10, 20, 25, 30, 50]
FEW_STEPS = [1, 2, 3, 5, 8, 25]
Options = dict[str, Any]


def processes() -> Iterator[Options]:
    """What may be predicted, with which table of training; noise needs a signal."""
    for prediction, schedule, zero_snr in product(["noise", "sample", "velocity"], ["quadratic", "uniform"], [0, 1]):
        if not (zero_snr and prediction == "noise"):
            yield {
                "model_prediction_type": prediction,
                "noise_schedule": schedule,
                "rescale_zero_terminal_snr": bool(zero_snr),
            }


PROCESSES = [pytest.param(options, id="-".join(map(str, options.values()))) for options in processes()]


def draw(*options: Sequence[Any], key: object, count: int = 2) -> list[Any]:
    """Draw some combinations of options, different ones for each key."""
    combinations = list(product(*options))
    return Random(str(key)).sample(combinations, min(count, len(combinations)))


def first_steps(count: int) -> list[int]:
    """From the beginning, and for image to image."""
    return [0, count // 2] if count > 1 else [0]


LEADING = [{"timesteps_spacing": "leading", "timesteps_offset": offset} for offset in (0, 1)]
TRAILING = {"timesteps_spacing": "trailing_rounded", "timesteps_offset": 0}
SIGMA_GRIDS = [*LEADING, TRAILING, {"timesteps_spacing": "linspace"}]
LAMBDA_GRIDS = [TRAILING, {"timesteps_spacing": "custom"}]
SIGMA_SCHEDULES = [None, "karras", "exponential"]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", [*STEPS, 600])
def test_ddim(steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]) -> None:
    # Where `steps` does not divide 1000, diffusers steps to other timesteps than the trailing ones it tells the model.
    grids = LEADING if 1000 % steps else [*LEADING, TRAILING]
    for grid, first in draw(grids, first_steps(min(steps, 50)), key=(steps, process)):
        params = {**process, **grid}
        scheduler = scheduler_of(DDIMScheduler, params, False, clip_sample=False, set_alpha_to_one=False)
        scheduler.set_timesteps(steps)
        first += max(0, steps - 50)  # the last of many steps
        compare(DDIM(steps, first, SolverParams(**params), dtype=torch.float64), scheduler)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm(steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]) -> None:
    for grid, first in draw([*LEADING, TRAILING], first_steps(steps), key=(steps, process)):
        params = {**process, **grid}
        scheduler = scheduler_of(DDPMScheduler, params, False, clip_sample=False)
        scheduler.set_timesteps(steps)
        compare(DDPM(steps, first, SolverParams(**params), dtype=torch.float64), scheduler)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", STEPS)
def test_euler(steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]) -> None:
    for grid, sigmas, first in draw(SIGMA_GRIDS, SIGMA_SCHEDULES, first_steps(steps), key=(steps, process)):
        params = {**process, **grid, "sigma_schedule": sigmas}
        scheduler = scheduler_of(EulerDiscreteScheduler, params, True)
        scheduler.set_timesteps(steps)
        solver = Euler(steps, first, SolverParams(**params), dtype=torch.float64)
        compare(solver, scheduler)
        if grid["timesteps_spacing"] != "leading":  # there diffusers adds the variance of an image to that of the noise
            assert solver.init_noise_sigma.item() == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("process", [process for process in PROCESSES if "sample" not in str(process.id)])
@pytest.mark.parametrize("steps", STEPS)
def test_euler_ancestral(
    steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]
) -> None:
    for grid, first in draw(SIGMA_GRIDS, first_steps(steps), key=(steps, process)):
        params = {**process, **grid}
        scheduler = scheduler_of(EulerAncestralDiscreteScheduler, params, True)
        scheduler.set_timesteps(steps)
        compare(EulerAncestral(steps, first, SolverParams(**params), dtype=torch.float64), scheduler)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("stretches", FEW_STEPS)
def test_heun(
    stretches: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]
) -> None:
    for grid, sigmas, first in draw(SIGMA_GRIDS, SIGMA_SCHEDULES, first_steps(stretches), key=(stretches, process)):
        params = {**process, **grid, "sigma_schedule": sigmas}
        scheduler = scheduler_of(HeunDiscreteScheduler, params, True)
        scheduler.set_timesteps(stretches)
        solver = Heun(2 * stretches - 1, 2 * first, SolverParams(**params), dtype=torch.float64)
        compare(solver, scheduler)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", FEW_STEPS)
@pytest.mark.parametrize("sde", [False, True], ids=["ode", "sde"])
def test_dpm(
    sde: bool, steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]
) -> None:
    for grid, sigmas, first, first_order in draw(
        LAMBDA_GRIDS, SIGMA_SCHEDULES, first_steps(steps), [False, True], key=(steps, process, sde)
    ):
        params = {**process, **grid, "sigma_schedule": sigmas, "sde_variance": float(sde)}
        scheduler = scheduler_of(
            DPMSolverMultistepScheduler,
            params,
            True,
            algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
            final_sigmas_type="sigma_min",
            lower_order_final=False,
            euler_at_final=first_order,
        )
        scheduler.set_timesteps(steps)
        solver = DPMSolver(steps, first, SolverParams(**params), last_step_first_order=first_order, dtype=torch.float64)
        compare(solver, scheduler, "truncated" if sigmas == "exponential" else "equal")


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", FEW_STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(
    order: int, steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]
) -> None:
    schedules = SIGMA_SCHEDULES if steps > 1 else [None]  # in diffusers a single level is both the first and the last
    for grid, sigmas, first in draw(LAMBDA_GRIDS, schedules, first_steps(steps), key=(steps, process, order)):
        params = {**process, **grid, "sigma_schedule": sigmas}
        scheduler = scheduler_of(
            UniPCMultistepScheduler, params, True, final_sigmas_type="sigma_min", solver_order=order
        )
        scheduler.set_timesteps(steps)
        solver = UniPC(steps, first, SolverParams(**params), order=order, dtype=torch.float64)
        compare(solver, scheduler, "truncated" if sigmas == "exponential" else "equal")


@pytest.mark.parametrize("process", [process for process in PROCESSES if "True" not in str(process.id)])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20])
@pytest.mark.parametrize("num_orig_steps", [20, 50, 100])
def test_lcm(
    num_orig_steps: int, steps: int, process: Options, compare: Callable[..., float], scheduler_of: Callable[..., Any]
) -> None:
    for first in first_steps(steps):
        params = {**process, **TRAILING}
        scheduler = scheduler_of(LCMScheduler, params, False, original_inference_steps=num_orig_steps)
        scheduler.set_timesteps(steps)
        solver = LCMSolver(steps, first, SolverParams(**process), num_orig_steps=num_orig_steps, dtype=torch.float64)
        compare(solver, scheduler)
