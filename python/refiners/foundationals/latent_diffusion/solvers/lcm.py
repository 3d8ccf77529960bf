"""The solver of latent consistency models."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

from refiners.foundationals.latent_diffusion.noise import Generators, noise_like
from refiners.foundationals.latent_diffusion.solvers.dpm import DPMSolver
from refiners.foundationals.latent_diffusion.solvers.params import BaseSolverParams, TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.solver import Solver
from refiners.ops import weighted_sum

_DATA_STD = 0.5  # σ_data of the paper
_TIMESTEP_SCALE = 10.0


class LCMSolver(Solver):
    """Multistep consistency sampling: map the latents straight to an image, add noise for the next timestep, and again.

    See [[arXiv:2310.04378] Latent Consistency Models](https://arxiv.org/abs/2310.04378), algorithm 3. The timesteps are
    some of those of the solver that the model was distilled from, with `num_orig_steps` steps.

    Attributes:
        num_orig_steps: The number of steps of that solver.
        dpm: That solver.
        timestep_indices: Its steps whose timesteps are taken.
    """

    default_params = dataclasses.replace(Solver.default_params, timesteps_spacing=TimestepSpacing.TRAILING)

    def __init__(
        self,
        num_inference_steps: int,
        first_inference_step: int = 0,
        params: BaseSolverParams | None = None,
        num_orig_steps: int = 50,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Compute timesteps, noise levels and factors.

        Args:
            num_inference_steps: The number of calls of the model.
            first_inference_step: The step to begin at.
            params: What to change of the default parameters; the spacing is that of the original solver.
            num_orig_steps: The number of steps of the original solver.
            device: Where to put the tensors.
            dtype: Their dtype.

        Raises:
            AssertionError: If the original solver had less steps.
        """
        if num_orig_steps < num_inference_steps:
            raise AssertionError(
                f"num_orig_steps must be at least num_inference_steps ({num_inference_steps}), got {num_orig_steps}"
            )
        self.num_orig_steps = num_orig_steps
        super().__init__(
            num_inference_steps, first_inference_step=first_inference_step, params=params, device=device, dtype=dtype
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "num_orig_steps": self.num_orig_steps}

    def _generate_timesteps(self) -> Shaped[Tensor, " steps"]:
        self.dpm = DPMSolver(self.num_orig_steps, params=self.params)
        indices = np.linspace(0, self.num_orig_steps, self.num_inference_steps + 1)[:-1]
        self.timestep_indices: list[int] = [int(index) for index in indices]
        return self.dpm.timesteps[self.timestep_indices]

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._factors = [self._factors_of(step, float(timesteps[step])) for step in self.all_steps]

    def _factors_of(self, step: int, timestep: float) -> tuple[float, float, float]:
        """Compute the factors of latents, prediction and noise in the latents of the next timestep."""
        time = _TIMESTEP_SCALE * timestep
        skip, out = _DATA_STD**2 / (time**2 + _DATA_STD**2), time / math.hypot(time, _DATA_STD)
        on_x, on_prediction = self._data[step]
        is_last = step == len(self._data) - 1
        next_signal, next_std = (1.0, 0.0) if is_last else self._levels[step + 1]
        return next_signal * (skip + out * on_x), next_signal * out * on_prediction, next_std

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        factors = self._factors[step]
        if factors[-1] == 0:
            return weighted_sum([x, predicted_noise], factors[:2])
        return weighted_sum([x, predicted_noise, noise_like(x, generator)], factors)
