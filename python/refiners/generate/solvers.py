"""The solvers that can be asked for by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    LCMSolver,
    ModelPredictionType,
    Solver,
    SolverParams,
    TimestepSpacing,
    UniPC,
)

SOLVERS: dict[str, tuple[Callable[..., Solver], SolverParams]] = {
    "ddim": (DDIM, SolverParams()),
    "dpm": (DPMSolver, SolverParams()),
    "dpm-karras": (DPMSolver, SolverParams(sigma_schedule="karras")),  # pyright: ignore[reportArgumentType]
    "dpm-sde": (DPMSolver, SolverParams(sde_variance=1.0)),
    "euler": (Euler, SolverParams()),
    "euler-ancestral": (EulerAncestral, SolverParams()),
    "heun": (Heun, SolverParams()),
    "lcm": (LCMSolver, SolverParams()),
    "unipc": (UniPC, SolverParams()),
}


def make_solver(name: str, like: Solver, trailing: bool = False, prediction: str | None = None) -> Solver:
    """Make the solver of a name, for a model whose noise and prediction another one knows.

    Args:
        name: The name, one of `SOLVERS`.
        like: The solver that knows the model.
        trailing: Whether the steps begin at the last timestep even if those of `like` do not.
        prediction: What the model predicts, if it is something else than what `like` says.
    """
    make, params = SOLVERS[name]
    known = ("num_train_timesteps", "initial_diffusion_rate", "final_diffusion_rate", "noise_schedule")
    known += ("model_prediction_type", "rescale_zero_terminal_snr")
    changes: dict[str, Any] = {field: getattr(like.params, field) for field in known}
    if trailing or is_trailing(like):  # the model needs the last timestep
        changes |= {"timesteps_spacing": TimestepSpacing.TRAILING_ROUNDED, "timesteps_offset": 0}
    if prediction is not None:
        changes["model_prediction_type"] = ModelPredictionType(prediction)
    options = {"num_orig_steps": like.num_orig_steps} if make is LCMSolver and isinstance(like, LCMSolver) else {}
    return make(1, params=dataclasses.replace(params, **changes), **options)


def name_of(solver: Solver) -> str:
    """Give the name by which `make_solver` makes such a solver."""
    kind = (type(solver), solver.params.sigma_schedule, solver.params.sde_variance)
    return next(
        name for name, (make, params) in SOLVERS.items() if (make, params.sigma_schedule, params.sde_variance) == kind
    )


def is_trailing(solver: Solver) -> bool:
    """Whether the steps of a solver begin at the last timestep, evenly spaced from there."""
    return solver.params.timesteps_spacing is TimestepSpacing.TRAILING_ROUNDED
