"""The base class of solvers that extrapolate from the steps before."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from refiners.foundationals.latent_diffusion.solvers import schedule
from refiners.foundationals.latent_diffusion.solvers.params import TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.solver import Solver

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAST = 1e-6  # of what a logarithm is taken


class MultistepSolver(Solver):
    """A solver that estimates the image at each step, and extrapolates from the estimates of the steps before.

    Its latents have variance 1, as those of training. Its levels are `σ = s / a`, interpolated between the timesteps of
    training; there is one more at the end, that of timestep 0. With a `sigma_schedule`, levels are spaced over the
    whole range of training as it says, and the timesteps follow them, rounded; then the last two levels are the same,
    and the last step of a deterministic solver changes nothing.

    By default (CUSTOM) the timesteps are evenly spaced, rounded, and end above 0, where the last step ends.

    The state is `estimated_data`. It belongs to one run: runs that take turns need a solver each. (`rebuild` gives one,
    and so does `copy.deepcopy`, which copies the state too.) A run that begins somewhere else than at
    `first_inference_step`, or that leaves out a step, begins anew, with the first order.

    Attributes:
        sigmas: The levels of all steps, and of the end.
        cumulative_scale_factors: The factor of the image at each of these levels.
        noise_std: The factor of the noise at each of them.
        signal_to_noise_ratios: The logarithm of their ratio, the half-logSNR λ.
        estimated_data: The estimates of the last steps, in float32 where the latents have 16 bits.
    """

    default_params = dataclasses.replace(Solver.default_params, timesteps_spacing=TimestepSpacing.CUSTOM)
    supports_sigma_schedule = True

    order: int
    sigmas: Float[Tensor, " levels"]
    estimated_data: deque[Tensor]

    def _generate_timesteps(self) -> Shaped[Tensor, " steps"]:
        params = self.params
        if params.timesteps_spacing != TimestepSpacing.CUSTOM:
            return super()._generate_timesteps()
        values = schedule.intervals(self.num_inference_steps, params.num_train_timesteps, params.timesteps_offset)
        return torch.tensor(values.tolist(), dtype=torch.int64)

    def _initial_grid(self) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        if self.params.sigma_schedule is None:
            return self._grid_at(self._generate_timesteps())
        table = self._sigma_table
        return self._grid_of(schedule.spaced(self.params.sigma_schedule, table[-1], table[0], self.num_inference_steps))

    def _grid_at(self, timesteps: Shaped[Tensor, " steps"]) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        return self._grid_of(schedule.interpolate(self._sigma_table, schedule.as_table(timesteps)))

    def _grid_of(self, sigmas: Table) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        table = self._sigma_table
        timesteps = torch.tensor(schedule.positions_of(sigmas, table).round().tolist(), dtype=torch.int32)
        sigmas = np.append(sigmas, table[0])
        signal = 1 / np.hypot(sigmas, 1)
        return timesteps, signal, sigmas * signal

    @property
    def _sigma_table(self) -> Table:
        return schedule.sigma_table(self._signal_table, self._noise_table)

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self.sigmas = torch.tensor(noise / signal)
        self._publish_levels(signal, noise)
        # λ, which is what extrapolation is done in, and its increments: h of the papers
        self._ratios = [math.log(max(a, _LEAST)) - math.log(max(s, _LEAST)) for a, s in self._levels]
        self._increments = [after - before for before, after in zip(self._ratios, self._ratios[1:])]

    def reset(self) -> None:
        """Forget the estimates of the steps made so far. It also happens at `first_inference_step`."""
        self.estimated_data = deque(maxlen=self.order)
        self._last_step: int | None = None

    def _begin(self, step: int) -> None:
        """Forget the state if it is not that of the step before, which the first step has not."""
        if self._last_step != step - 1:
            self.reset()

    def _remember(self, step: int, data: Tensor) -> None:
        self.estimated_data.append(data)
        self._last_step = step

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.estimated_data = deque((data.to(fn(data).device) for data in self.estimated_data), maxlen=self.order)
        return self
