"""The solvers that can be asked for by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    LCMSolver,
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


def make_solver(name: str, like: Solver) -> Solver:
    """Make the solver of a name, for a model whose noise and prediction another one knows."""
    make, params = SOLVERS[name]
    known = ("num_train_timesteps", "initial_diffusion_rate", "final_diffusion_rate", "noise_schedule")
    known += ("model_prediction_type", "rescale_zero_terminal_snr")
    if like.params.timesteps_spacing is TimestepSpacing.TRAILING_ROUNDED:  # the model needs the last timestep
        known += ("timesteps_spacing", "timesteps_offset")
    return make(30, params=dataclasses.replace(params, **{field: getattr(like.params, field) for field in known}))
