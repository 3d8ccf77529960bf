"""Solvers by their names, for a model that another solver knows."""

from __future__ import annotations

import pytest
import torch

from refiners.foundationals.latent_diffusion.solvers import (
    Euler,
    LCMSolver,
    ModelPredictionType,
    SolverParams,
    TimestepSpacing,
)
from refiners.generate.solvers import SOLVERS, is_trailing, make_solver, name_of


@pytest.mark.parametrize("name", SOLVERS)
def test_what_the_model_needs_is_kept(name: str) -> None:
    known = Euler(4, params=SolverParams(num_train_timesteps=500, model_prediction_type=ModelPredictionType.VELOCITY))
    solver = make_solver(name, known)
    assert solver.params.num_train_timesteps == 500
    assert solver.params.model_prediction_type is ModelPredictionType.VELOCITY
    assert solver.params.timesteps_spacing is SOLVERS[name][0].default_params.timesteps_spacing
    assert not is_trailing(solver)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_the_name_that_makes_it(name: str) -> None:
    assert name_of(make_solver(name, Euler(4)).rebuild(5)) == name


@pytest.mark.parametrize("name", SOLVERS)
def test_trailing_steps_begin_at_the_last_timestep(name: str) -> None:
    solver = make_solver(name, Euler(4), trailing=True)
    assert is_trailing(solver) and solver.params.timesteps_offset == 0
    timesteps = solver.rebuild(1 if name != "heun" else 3).timesteps
    torch.testing.assert_close(timesteps[0].double(), torch.tensor(999.0).double(), rtol=0, atol=1e-3)
    assert is_trailing(make_solver("dpm", solver))  # it stays so


def test_distilled_models_of_four_steps() -> None:
    assert make_solver("euler", Euler(4), trailing=True).rebuild(4).timesteps.tolist() == [999, 749, 499, 249]


def test_the_prediction_can_be_told() -> None:
    solver = make_solver("ddim", Euler(4), prediction="velocity")
    assert solver.params.model_prediction_type is ModelPredictionType.VELOCITY
    assert solver.params.timesteps_spacing is TimestepSpacing.LEADING


def test_a_consistency_model_keeps_the_steps_it_was_distilled_from() -> None:
    solver = make_solver("lcm", LCMSolver(4, num_orig_steps=20), trailing=True)
    assert isinstance(solver, LCMSolver) and solver.num_orig_steps == 20
