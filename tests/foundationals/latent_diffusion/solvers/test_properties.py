"""What holds for any number of steps and any parameters."""

from itertools import pairwise

import torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    ModelPredictionType,
    NoiseSchedule,
    Solver,
    SolverParams,
    TimestepSpacing,
    UniPC,
)

SPACINGS = [spacing for spacing in TimestepSpacing if spacing != TimestepSpacing.CUSTOM]
CASES = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@st.composite
def solvers(draw: st.DrawFn) -> Solver:
    cls = draw(st.sampled_from([DDIM, DDPM, DPMSolver, Euler, EulerAncestral, Heun, UniPC]))
    num_train_timesteps = draw(st.integers(20, 1500))
    steps = draw(st.integers(1, min(num_train_timesteps, 60)))
    prediction = draw(st.sampled_from(ModelPredictionType))
    params = SolverParams(
        num_train_timesteps=num_train_timesteps,
        timesteps_spacing=draw(st.sampled_from(SPACINGS)),
        timesteps_offset=draw(st.integers(0, 2)),
        noise_schedule=draw(st.sampled_from(NoiseSchedule)),
        sigma_schedule=draw(st.sampled_from([None, *NoiseSchedule])) if cls.supports_sigma_schedule else None,
        model_prediction_type=prediction,
        rescale_zero_terminal_snr=prediction != ModelPredictionType.NOISE and draw(st.booleans()),
        initial_diffusion_rate=draw(st.floats(1e-4, 5e-3)),
        final_diffusion_rate=draw(st.floats(6e-3, 5e-2)),
    )
    return cls(steps, draw(st.integers(0, steps - 1)), params, dtype=torch.float64)


@CASES
@given(st.integers(1, 1500), st.integers(2, 1500), st.integers(0, 3), st.sampled_from(SPACINGS))
def test_timesteps_descend(count: int, num_train_timesteps: int, offset: int, spacing: TimestepSpacing) -> None:
    count = min(count, num_train_timesteps)
    timesteps = Solver.generate_timesteps(spacing, count, num_train_timesteps, offset)
    assert timesteps.shape == (count,)
    assert (timesteps.diff() < 0).all()
    assert timesteps.min() >= offset and timesteps.max() <= num_train_timesteps - 1 + offset
    if spacing in (TimestepSpacing.TRAILING, TimestepSpacing.TRAILING_ROUNDED):
        assert timesteps[0] == num_train_timesteps - 1 + offset
    else:
        assert timesteps[-1] == offset


@CASES
@given(solvers(), st.integers(0, 2**31))
def test_noise_that_was_added_can_be_removed(solver: Solver, seed: int) -> None:
    image, noise = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for step in {0, solver.first_inference_step, solver.all_steps[-1]}:
        signal, std = solver._levels[step]
        noisy = solver.add_noise(image, noise, step)
        if signal > 0:
            assert_close(solver.remove_noise(noisy, noise, step), image, rtol=1e-7, atol=1e-12 * std / signal)
        else:
            assert_close(noisy, noise)


@CASES
@given(solvers())
def test_levels_fall_and_steps_are_finite(solver: Solver) -> None:
    ratios = [std / signal if signal else float("inf") for signal, std in solver._levels]
    assert all(before >= after for before, after in pairwise(ratios))
    x = solver.initial_latents(torch.ones(1, 2, dtype=torch.float64))
    for step in solver.inference_steps:
        x = solver(x, torch.tanh(solver.scale_model_input(x, step)), step)
        assert x.isfinite().all()


@CASES
@given(solvers(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_timesteps_and_factors_do_not_depend_on_the_dtype(solver: Solver, dtype: torch.dtype) -> None:
    other = solver.rebuild(None).to(dtype=dtype)
    assert other.dtype == dtype and torch.equal(other.timesteps, solver.timesteps)
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    step = solver.first_inference_step
    generators = [torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)]
    assert torch.equal(other(x, x / 2, step, generators[0]), solver(x, x / 2, step, generators[1]))
    assert solver.add_noise(x.to(dtype), x.to(dtype), step).dtype == dtype
