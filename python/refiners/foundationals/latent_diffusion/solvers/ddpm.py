"""DDPM."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from refiners.foundationals.latent_diffusion.noise import Generators, noise_like
from refiners.foundationals.latent_diffusion.solvers.params import TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.solver import Solver
from refiners.ops import weighted_sum


class _Factors(NamedTuple):
    x: float
    prediction: float
    noise: float


class DDPM(Solver):
    """The process of training, and its reverse: each step draws from what the image may have been one timestep earlier.

    See [[arXiv:2006.11239] Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239), equation 7, and
    algorithm 2 with `σ² = β̃`. For training, `DDPM(num_inference_steps=1000)` has all timesteps.
    """

    default_params = dataclasses.replace(Solver.default_params, timesteps_spacing=TimestepSpacing.LEADING)

    def _grid_at(self, timesteps: Shaped[Tensor, " steps"]) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        timesteps, signal, noise = super()._grid_at(timesteps)
        return timesteps, np.append(signal[:-1], 1.0), np.append(noise[:-1], 0.0)  # the last step ends at the image

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._factors = [self._factors_of(step) for step in range(len(timesteps))]

    def _factors_of(self, step: int) -> _Factors:
        (signal, std), (next_signal, next_std) = self._levels[step : step + 2]
        kept = signal / next_signal  # the factor of the latents between the two, √α of the paper
        added = 1 - kept**2  # the variance added between them, β of the paper
        of_data, of_x = next_signal * added / std**2, kept * next_std**2 / std**2
        on_x, on_prediction = self._data[step]
        return _Factors(
            x=of_x + of_data * on_x,
            prediction=of_data * on_prediction,
            noise=math.sqrt(added) * next_std / std,
        )

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        factors = self._factors[step]
        if factors.noise == 0:
            return weighted_sum([x, predicted_noise], factors[:2])
        return weighted_sum([x, predicted_noise, noise_like(x, generator)], factors)
