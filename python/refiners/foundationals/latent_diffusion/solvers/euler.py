"""Euler's method, and Euler's method with noise."""

import math

from jaxtyping import Float, Shaped
from torch import Tensor

from refiners.foundationals.latent_diffusion.noise import Generators, noise_like
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.sigma_solver import SigmaSolver
from refiners.ops import weighted_sum


class Euler(SigmaSolver):
    """Euler's method: follow the predicted noise down to the next level, `x + (σ' - σ)·ε`.

    See [[arXiv:2206.00364] Elucidating the Design Space](https://arxiv.org/abs/2206.00364), algorithm 1 without its
    correction and without churn.
    """

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._factors = [self._factors_to(step, target) for step, target in enumerate(self._sigmas[1:])]

    def _factors_to(self, step: int, sigma: float) -> tuple[float, float]:
        """Compute the factors of latents and prediction in the latents of another level."""
        difference = sigma - self._sigmas[step]
        on_x, on_prediction = self._noise[step]
        return 1 + difference * on_x, difference * on_prediction

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        return weighted_sum([x, predicted_noise], self._factors[step])


class EulerAncestral(Euler):
    """Euler's method down to a level below the next one, then noise up to that: the DDPM of large steps.

    See [[arXiv:2010.02502] Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502), equations 12 and 16
    with η = 1. The last step adds no noise.
    """

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        levels = zip(self._sigmas, self._sigmas[1:])
        # The variance of the next level is that of the level below it, plus that of the noise.
        self._noises = [target * math.sqrt(1 - (target / sigma) ** 2) for sigma, target in levels]
        self._factors = [
            self._factors_to(step, math.sqrt(target**2 - noise**2))
            for step, (target, noise) in enumerate(zip(self._sigmas[1:], self._noises))
        ]

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        if self._noises[step] == 0:
            return weighted_sum([x, predicted_noise], self._factors[step])
        noise = noise_like(x, generator)
        return weighted_sum([x, predicted_noise, noise], [*self._factors[step], self._noises[step]])
