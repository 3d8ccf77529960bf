"""The base class of solvers whose latents are the image plus noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from refiners.foundationals.latent_diffusion.solvers import schedule
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.solver import Solver
from refiners.ops import weighted_sum


class SigmaSolver(Solver):
    """A solver whose latents are `x₀ + σ·ε`: they are scaled down for the model, which knows latents of variance 1.

    See [[arXiv:2206.00364] Elucidating the Design Space of Diffusion-Based Generative
    Models](https://arxiv.org/abs/2206.00364), whose notation is used. The level `σ` of a timestep is `s / a`,
    interpolated between the timesteps of training. With a `sigma_schedule` the levels between the first and the last
    one are spaced as it says, and the timesteps follow them.

    Latents begin as `σ₀·noise`, or as `x₀ + σ·noise` for image to image, and end at `σ = 0`.

    Attributes:
        sigmas: The levels of all steps, and 0.
        init_noise_sigma: The highest one.
    """

    supports_sigma_schedule = True

    sigmas: Float[Tensor, " levels"]
    init_noise_sigma: Float[Tensor, ""]

    def _initial_grid(self) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        timesteps = self._generate_timesteps()
        if self.params.sigma_schedule is None:
            return self._grid_at(timesteps)
        levels = self._sigmas_at(timesteps)
        sigmas = schedule.spaced(self.params.sigma_schedule, levels[0], levels[-1], len(levels))
        positions = schedule.positions_of(sigmas, self._sigma_table)
        return torch.tensor(positions, dtype=torch.float32), *_with_zero(sigmas)

    def _grid_at(self, timesteps: Shaped[Tensor, " steps"]) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        return timesteps, *_with_zero(self._sigmas_at(timesteps))

    def _sigmas_at(self, timesteps: Tensor) -> Table:
        return schedule.interpolate(self._sigma_table, schedule.as_table(timesteps))

    @property
    def _sigma_table(self) -> Table:
        return schedule.sigma_table(self._signal_table, self._noise_table)

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._sigmas: list[float] = noise.tolist()
        self.sigmas = torch.tensor(noise)
        self.init_noise_sigma = self.sigmas.max()

    def scale_model_input(self, x: Float[Tensor, "*shape"], step: int) -> Float[Tensor, "*shape"]:
        """Scale latents to variance 1 for the model, or noise of variance 1 to latents for step -1.

        See `Solver.scale_model_input`.
        """
        if step == -1:
            return weighted_sum([x], [max(self._sigmas)])
        self._check_step(step)
        return weighted_sum([x], [1 / math.hypot(self._sigmas[step], 1)])


def _with_zero(sigmas: Table) -> tuple[Table, Table]:
    """Give the factors of image and noise of levels, and of the end, which has none."""
    return np.ones(len(sigmas) + 1), np.append(sigmas, 0.0)
