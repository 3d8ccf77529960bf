"""What only the solver of consistency models has."""

import pytest
import torch
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.solvers import (
    DPMSolver,
    LCMSolver,
    ModelPredictionType,
    NoiseSchedule,
    SolverParams,
    TimestepSpacing,
)


def test_timesteps_are_some_of_the_original_solver() -> None:
    solver = LCMSolver(4)
    assert isinstance(solver.dpm, DPMSolver) and solver.dpm.num_inference_steps == solver.num_orig_steps == 50
    assert solver.dpm.params.timesteps_spacing == TimestepSpacing.TRAILING
    assert solver.timestep_indices == [0, 12, 25, 37]
    assert solver.timesteps.tolist() == [999, 759, 499, 259]
    assert torch.equal(solver.timesteps, solver.dpm.timesteps[[0, 12, 25, 37]])


@pytest.mark.parametrize("prediction", ModelPredictionType)
@pytest.mark.parametrize("schedule", NoiseSchedule)
def test_a_step_maps_to_an_image_and_adds_noise(prediction: ModelPredictionType, schedule: NoiseSchedule) -> None:
    params = SolverParams(model_prediction_type=prediction, noise_schedule=schedule, num_train_timesteps=40)
    solver = LCMSolver(4, params=params, num_orig_steps=20, dtype=torch.float64)
    x, output = torch.randn(2, 2, 4, 3, 2, dtype=torch.float64)
    for step, timestep in enumerate(solver.timesteps.tolist()):
        time = 10 * timestep
        x0 = solver.predict_data(x, output, step)
        image = 0.25 / (time**2 + 0.25) * x + time / (0.25 + time**2) ** 0.5 * x0
        result = solver(x, output, step, generator=torch.Generator().manual_seed(step))
        if step == 3:
            assert_close(result, image)
            break
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        index = solver.timestep_indices[step + 1]
        assert_close(result, solver.dpm.add_noise(image, drawn, step=index))
        x = result


def test_velocity_without_signal_at_the_end() -> None:
    params = SolverParams(model_prediction_type=ModelPredictionType.VELOCITY, rescale_zero_terminal_snr=True)
    solver = LCMSolver(4, params=params)
    x = torch.randn(1, 4, 3, 2)
    assert_close(solver.predict_data(x, -x, 0), x)  # at the first timestep the velocity is the negated image


def test_the_original_solver_has_enough_steps() -> None:
    with pytest.raises(AssertionError, match=r"num_orig_steps must be at least num_inference_steps \(51\), got 50"):
        LCMSolver(51)


def test_the_original_solver_moves_too() -> None:
    assert LCMSolver(4).to(dtype=torch.float64).dpm.dtype == torch.float64
