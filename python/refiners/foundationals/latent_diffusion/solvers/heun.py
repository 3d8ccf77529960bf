"""Heun's method."""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor

from refiners.foundationals.latent_diffusion.noise import Generators
from refiners.foundationals.latent_diffusion.solvers.arithmetic import wide
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.sigma_solver import SigmaSolver
from refiners.ops import weighted_sum


class Heun(SigmaSolver):
    """Heun's method: each stretch is made by Euler, then corrected to follow the mean of the noise at its two ends.

    See [[arXiv:2206.00364] Elucidating the Design Space](https://arxiv.org/abs/2206.00364), algorithm 1 without churn.

    A stretch takes two calls of the model, but the last one, to `σ = 0`, takes one. As for each solver,
    `num_inference_steps` counts calls of the model, and a step is a call: `2·m - 1` of them make `m` stretches. Each
    timestep but the first one stands twice in `timesteps`, once to correct and once to go on. With an even number the
    first stretch is not corrected: there the noise changes least.

    The solver remembers the noise at the beginning of a stretch. A correction without it, where a run begins at one,
    changes nothing.
    """

    def _generate_timesteps(self) -> Shaped[Tensor, " stretches"]:
        return self.generate_timesteps(
            self.params.timesteps_spacing,
            self.num_inference_steps // 2 + 1,
            self.params.num_train_timesteps,
            self.params.timesteps_offset,
        )

    def _initial_grid(self) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        timesteps, signal, noise = super()._initial_grid()
        once = 1 if self.num_inference_steps % 2 else 2  # how many stretches are not corrected before their successor
        calls = [*range(once), *(stretch for stretch in range(once, len(timesteps)) for _ in range(2))]
        return timesteps[calls], signal[[*calls, -1]], noise[[*calls, -1]]

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._factors: list[tuple[float, float, float]] = []
        for step, (on_x, on_prediction) in enumerate(self._noise):
            if self._corrects(step):
                half = (self._sigmas[step] - self._sigmas[step - 1]) / 2
                self._factors.append((1 + half * on_x, half * on_prediction, -half))
            else:
                whole = self._sigmas[step + 1] - self._sigmas[step]
                self._factors.append((1 + whole * on_x, whole * on_prediction, 0.0))

    def _corrects(self, step: int) -> bool:
        return step > 0 and (self.num_inference_steps - step) % 2 == 0

    def reset(self) -> None:
        """Forget the noise at the beginning of the stretch."""
        self._last_step: int | None = None
        self._last_noise: Tensor | None = None

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        factors = self._factors[step]
        if self._corrects(step):
            last_noise = self._last_noise if self._last_step == step - 1 else None
            self.reset()
            return x.clone() if last_noise is None else weighted_sum([x, predicted_noise, last_noise], factors)
        if step + 1 < self.num_inference_steps and self._corrects(step + 1):
            self._last_step, self._last_noise = step, self._predict_noise(x, predicted_noise, step, wide(x))
        return weighted_sum([x, predicted_noise], factors[:2])

    _keep_dtype = SigmaSolver._keep_dtype | {"_last_noise"}
