"""Solvers: from noise to latents in a number of steps."""

from refiners.foundationals.latent_diffusion.solvers.ddim import DDIM
from refiners.foundationals.latent_diffusion.solvers.ddpm import DDPM
from refiners.foundationals.latent_diffusion.solvers.dpm import DPMSolver
from refiners.foundationals.latent_diffusion.solvers.euler import Euler, EulerAncestral
from refiners.foundationals.latent_diffusion.solvers.franken import FrankenSolver
from refiners.foundationals.latent_diffusion.solvers.heun import Heun
from refiners.foundationals.latent_diffusion.solvers.lcm import LCMSolver
from refiners.foundationals.latent_diffusion.solvers.params import (
    ModelPredictionType,
    NoiseSchedule,
    SolverParams,
    TimestepSpacing,
)
from refiners.foundationals.latent_diffusion.solvers.solver import Solver
from refiners.foundationals.latent_diffusion.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Euler",
    "EulerAncestral",
    "FrankenSolver",
    "Heun",
    "LCMSolver",
    "ModelPredictionType",
    "NoiseSchedule",
    "Solver",
    "SolverParams",
    "TimestepSpacing",
    "UniPC",
]
