"""Rebuilding and copying solvers, and one run after another."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from refiners.foundationals.latent_diffusion.solvers import (
    DDPM,
    DPMSolver,
    Heun,
    LCMSolver,
    ModelPredictionType,
    NoiseSchedule,
    Solver,
    SolverParams,
    UniPC,
)


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 4, 3, 2)), generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def run(solver: Solver, x: Tensor, generator: Any = None) -> Tensor:
    """Run the solver with a prediction that depends on latents, step and nothing else of the batch."""
    for step in solver.inference_steps:
        x = solver(x, torch.tanh(solver.scale_model_input(x, step) + step / 10), step, generator=generator)
    return x


OPTIONS = [
    (DPMSolver, {"last_step_first_order": True}),
    (LCMSolver, {"num_orig_steps": 100}),
    (UniPC, {"order": 3}),
    (DDPM, {}),
    (Heun, {"params": SolverParams(sigma_schedule=NoiseSchedule.KARRAS)}),
]


@pytest.mark.parametrize("cls,options", OPTIONS)
def test_rebuild_keeps_options(cls: type[Any], options: dict[str, Any]) -> None:
    solver = cls(8, first_inference_step=3, dtype=torch.float64, **options)
    run(solver, latents().double())
    rebuilt = solver.rebuild(11)
    assert type(rebuilt) is cls and rebuilt is not solver
    assert (rebuilt.num_inference_steps, rebuilt.first_inference_step, rebuilt.dtype) == (11, 3, torch.float64)
    assert rebuilt.params == solver.params
    for option, value in options.items():
        if option != "params":
            assert getattr(rebuilt, option) == value
    assert solver.rebuild(None).num_inference_steps == 8
    assert solver.rebuild(None, 5).first_inference_step == 5
    assert solver.num_inference_steps == 8 and solver.first_inference_step == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
def test_a_copy_goes_on_from_where_it_was_made(make: Callable[..., Solver], copied: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    for step in (0, 1, 2):
        x = solver(x, torch.tanh(x), step, generator=generators(step)[0])
    twin, y = copied(solver), x
    for step in (3, 4):
        x = solver(x, torch.tanh(x), step, generator=generators(step)[0])
    for step in (3, 4):
        y = twin(y, torch.tanh(y), step, generator=generators(step)[0])
    assert torch.equal(x, y)


@pytest.mark.parametrize("prediction", ModelPredictionType)
def test_buffers_of_the_caller_may_be_written_again(
    make: Callable[..., Solver], prediction: ModelPredictionType
) -> None:
    params = dataclasses.replace(make(5).params, model_prediction_type=prediction)
    solver, same = (type(make(5))(5, params=params) for _ in range(2))
    x, buffer, predicted = latents(), latents(), latents()
    for step in solver.inference_steps:
        expected = solver(x, torch.tanh(x), step, generator=generators(step)[0])
        buffer.copy_(x)
        predicted.copy_(torch.tanh(x))
        x = same(buffer, predicted, step, generator=generators(step)[0])
        buffer.zero_()
        predicted.zero_()
        assert torch.equal(x, expected)


def test_the_latents_of_a_step_may_be_written_to(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver, same = make(5), make(5)
    x = latents().to(dtype)
    for step in solver.inference_steps:
        expected = solver(x.clone(), torch.tanh(x), step, generator=generators(step)[0])
        given = same(x.clone(), torch.tanh(x), step, generator=generators(step)[0])
        x = expected.clone()
        assert torch.equal(given, x)
        given.zero_()


def test_runs_do_not_depend_on_those_before(make: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    first = run(solver, x, generators(1)[0])
    solver(latents(seed=3), latents(seed=4), 0)
    solver(latents(seed=3), latents(seed=4), 1)  # a run that was given up
    assert torch.equal(run(solver, x, generators(1)[0]), first)


def test_a_solver_shows_its_arguments() -> None:
    shown = repr(DPMSolver(5, first_inference_step=1, last_step_first_order=True))
    assert shown.startswith("DPMSolver(")
    assert "first_inference_step=1" in shown and "last_step_first_order=True" in shown
