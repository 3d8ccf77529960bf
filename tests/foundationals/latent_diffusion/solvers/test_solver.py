"""What all solvers have in common."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.solvers import (
    DPMSolver,
    ModelPredictionType,
    Solver,
    SolverParams,
    TimestepSpacing,
)

SIGMA_SPACE = {"Euler", "EulerAncestral", "Heun"}


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 4, 3, 2)), generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def run(solver: Solver, x: Tensor, generator: Any = None) -> Tensor:
    """Run the solver with a prediction that depends on latents, step and nothing else of the batch."""
    for step in solver.inference_steps:
        x = solver(x, torch.tanh(solver.scale_model_input(x, step) + step / 10), step, generator=generator)
    return x


# The contract


def test_steps_are_those_of_inference(make: Callable[..., Solver]) -> None:
    solver = make(7, first_inference_step=2)
    assert solver.all_steps == [0, 1, 2, 3, 4, 5, 6]
    assert solver.inference_steps == [2, 3, 4, 5, 6]
    assert solver.timesteps.shape == (7,)
    assert (solver.timesteps.diff() <= 0).all()


def test_tensors_are_not_in_the_state_dict(make: Callable[..., Solver]) -> None:
    solver = make(5)
    assert isinstance(solver, fl.Module)
    assert solver.state_dict() == {} and list(solver.parameters()) == [] and list(solver.buffers()) == []


@pytest.mark.parametrize("step", [-1, 1, 5, 6])
def test_steps_are_checked(make: Callable[..., Solver], step: int) -> None:
    solver, x = make(5, first_inference_step=2), latents()
    with pytest.raises(AssertionError, match=f"invalid step {step}: must be from 2 to 4"):
        solver(x, x, step)
    if step != 1:
        for method in (solver.add_noise, solver.remove_noise, solver.predict_data, solver.predict_noise):
            with pytest.raises(AssertionError, match=f"invalid step {step}: must be from 0 to 4"):
                method(x, x, step)
        if step != -1:
            with pytest.raises(AssertionError, match=f"invalid step {step}"):
                solver.scale_model_input(x, step)


def test_a_step_is_an_integer(make: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    with pytest.raises(TypeError, match=r"step must be an integer, got 1\.0"):
        solver(x, x, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_inference_steps must be an integer, got 5.0"):
        make(5.0)


@pytest.mark.parametrize("first", [-1, 5])
def test_the_first_step_is_checked(make: Callable[..., Solver], first: int) -> None:
    with pytest.raises(ValueError, match=f"first_inference_step must be from 0 to 4, got {first}"):
        make(5, first_inference_step=first)


def test_shapes_are_checked(make: Callable[..., Solver]) -> None:
    solver = make(5)
    with pytest.raises(ValueError, match=r"predicted_noise must have the shape \(2, 4, 3, 2\), got \(1, 4, 3, 2\)"):
        solver(latents(), latents(1, 4, 3, 2), 0)


def test_inputs_are_not_written_to(make: Callable[..., Solver]) -> None:
    solver, x, prediction = make(4), latents(), latents(seed=1)
    for step in solver.inference_steps:
        before, predicted = x.clone(), prediction.clone()
        y = solver(x, prediction, step)
        assert y.data_ptr() not in (x.data_ptr(), prediction.data_ptr())
        assert torch.equal(x, before) and torch.equal(prediction, predicted)
        x = y


# Noise


def test_add_noise_mixes_by_the_level_of_the_step(name: str, make: Callable[..., Solver]) -> None:
    solver, x, noise = make(5, dtype=torch.float64), latents().double(), latents(seed=1).double()
    for step in solver.all_steps:
        if name in SIGMA_SPACE:
            expected = x + solver.sigmas[step] * noise
        elif name.startswith(("DPM", "UniPC")):
            expected = solver.cumulative_scale_factors[step] * x + solver.noise_std[step] * noise
        else:
            timestep = int(solver.timesteps[step])
            expected = solver.cumulative_scale_factors[timestep] * x + solver.noise_std[timestep] * noise
        assert_close(solver.add_noise(x, noise, step), expected)
        assert_close(solver.remove_noise(expected, noise, step), x)


def test_add_noise_to_each_sample_at_its_step(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver, x, noise = make(5, dtype=dtype), latents(3, 4, 2, 2).to(dtype), latents(3, 4, 2, 2, seed=1).to(dtype)
    noisy = solver.add_noise(x, noise, [4, 0, 2])
    assert noisy.dtype == dtype
    for sample, step in enumerate([4, 0, 2]):
        assert_close(noisy[sample], solver.add_noise(x[sample], noise[sample], step))
    with pytest.raises(AssertionError, match="x, noise, and step must have the same length, got 3, 3 and 2"):
        solver.add_noise(x, noise, [0, 1])
    with pytest.raises(AssertionError, match="invalid step 5"):
        solver.add_noise(x, noise, [0, 1, 5])


def test_initial_latents_are_noise_or_a_noisy_image(name: str, make: Callable[..., Solver]) -> None:
    solver, noise, image = make(5, first_inference_step=2), latents(seed=1), latents()
    assert_close(solver.initial_latents(noise, image), solver.add_noise(image, noise, 2))
    assert_close(solver.initial_latents(noise), solver.scale_model_input(noise, step=-1))
    if name in SIGMA_SPACE:
        assert_close(solver.initial_latents(noise), noise * solver.init_noise_sigma)
        seen = solver.scale_model_input(solver.initial_latents(noise, image), 2)
        sigma = solver.sigmas[2]
        assert_close(seen, (image + sigma * noise) / (sigma**2 + 1).sqrt())
    else:
        assert solver.initial_latents(noise) is noise


@pytest.mark.parametrize("prediction", ModelPredictionType)
def test_a_perfect_model_leads_to_its_image(
    name: str, make: Callable[..., Solver], prediction: ModelPredictionType
) -> None:
    params = dataclasses.replace(make(9).params, model_prediction_type=prediction)
    solver = type(make(9))(9, params=params, dtype=torch.float64)
    image = latents().double()
    x = solver.initial_latents(latents(seed=1).double(), image)
    for step in solver.inference_steps:
        # Levels of the latents, from `add_noise` itself.
        one = torch.ones(1, dtype=torch.float64)
        a, s = solver.add_noise(one, 0 * one, step), solver.add_noise(0 * one, one, step)
        noise = (x - a * image) / s
        size = (a**2 + s**2).sqrt()
        output = {
            ModelPredictionType.NOISE: noise,
            ModelPredictionType.SAMPLE: image,
            ModelPredictionType.VELOCITY: (a * noise - s * image) / size,
        }[prediction]
        assert_close(solver.predict_data(x, output, step), image)
        assert_close(solver.predict_noise(x, output, step), noise)
        x = solver(x, output, step)
    assert (x - image).norm() < 0.2 * image.norm()  # what ends at timestep 0 keeps its noise
    if name in SIGMA_SPACE | {"DDPM", "LCMSolver"}:
        assert_close(x, image)


# Other timesteps


def test_timesteps_can_be_assigned(name: str, make: Callable[..., Solver]) -> None:
    solver, trailing = make(5), TimestepSpacing.TRAILING
    if name == "DPMSolver-sde":
        expected = DPMSolver(5, params=SolverParams(timesteps_spacing=trailing, timesteps_offset=0, sde_variance=1.0))
    elif name in ("Heun", "LCMSolver"):
        expected = make(5)
    else:
        expected = make(5, params=SolverParams(timesteps_spacing=trailing, timesteps_offset=0))
    solver.timesteps = torch.tensor([900, 700, 500, 300, 100])
    assert solver.timesteps.tolist() == [900, 700, 500, 300, 100]
    solver.timesteps = expected.timesteps
    x = latents()
    assert torch.equal(run(solver, x, generators(1)[0]), run(expected, x, generators(1)[0]))


def test_assigned_timesteps_are_checked(make: Callable[..., Solver]) -> None:
    solver = make(3)
    before = solver.timesteps
    with pytest.raises(ValueError, match=r"timesteps must have the shape \(3,\), got \(2,\)"):
        solver.timesteps = torch.tensor([5, 3])
    with pytest.raises(ValueError, match="timesteps must descend"):
        solver.timesteps = torch.tensor([5, 3, 4])
    assert solver.timesteps is before
