"""DPM-Solver++."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

from refiners.foundationals.latent_diffusion.noise import Generators, noise_like
from refiners.foundationals.latent_diffusion.solvers.arithmetic import wide
from refiners.foundationals.latent_diffusion.solvers.multistep_solver import MultistepSolver
from refiners.foundationals.latent_diffusion.solvers.params import BaseSolverParams
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.ops import weighted_sum


class _Factors(NamedTuple):
    x: float
    data: float
    noise: float
    slope: float  # of the difference of the last two estimates, in the second order


class DPMSolver(MultistepSolver):
    """DPM-Solver++(2M): a linear multistep method for the estimate of the image, deterministic or with noise.

    See [[arXiv:2211.01095] DPM-Solver++](https://arxiv.org/abs/2211.01095), algorithm 2, and its variant for stochastic
    differential equations, which is used if `params.sde_variance` is 1.
    """

    sde_variances = (0.0, 1.0)
    order = 2

    def __init__(
        self,
        num_inference_steps: int,
        first_inference_step: int = 0,
        params: BaseSolverParams | None = None,
        last_step_first_order: bool = False,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Compute timesteps, noise levels and factors.

        Args:
            num_inference_steps: The number of calls of the model.
            first_inference_step: The step to begin at.
            params: What to change of the default parameters.
            last_step_first_order: Whether the last step extrapolates nothing, which is steadier for few steps.
            device: Where to put the tensors.
            dtype: Their dtype.
        """
        self.last_step_first_order = last_step_first_order
        super().__init__(
            num_inference_steps, first_inference_step=first_inference_step, params=params, device=device, dtype=dtype
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "last_step_first_order": self.last_step_first_order}

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        steps = range(len(timesteps))
        self._ode_factors = [self._factors_of(step, sde=False) for step in steps]
        self._sde_factors = [self._factors_of(step, sde=True) for step in steps]

    def _factors_of(self, step: int, sde: bool) -> _Factors:
        h, (next_signal, next_std) = self._increments[step], self._levels[step + 1]
        previous_h = self._increments[step - 1] if step > 0 else 0.0
        of_x, changed = next_std / self._levels[step][1], -math.expm1(-2 * h if sde else -h)
        return _Factors(
            x=of_x * math.exp(-h) if sde else of_x,
            data=next_signal * changed,
            noise=next_std * math.sqrt(max(changed, 0.0)) if sde else 0.0,
            # Two steps at the same level say nothing of a slope.
            slope=next_signal * changed * h / previous_h / 2 if previous_h else 0.0,
        )

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        self._begin(step)
        data = self._predict_data(x, predicted_noise, step, wide(x))
        noise = noise_like(x, generator) if self.params.sde_variance else None
        previous = self.estimated_data[-1] if self.estimated_data else None
        if self.last_step_first_order and step == len(self._timesteps) - 1:
            previous = None
        result = self._update(x, data, previous, step, noise)
        self._remember(step, data)
        return result

    def dpm_solver_first_order_update(
        self,
        x: Float[Tensor, "batch *shape"],
        noise: Float[Tensor, "batch *shape"],
        step: int,
        sde_noise: Float[Tensor, "batch *shape"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Make a step from an estimate alone.

        Args:
            x: The latents.
            noise: The estimate of the image, whatever its name.
            step: The index of the step.
            sde_noise: The noise of a stochastic step; None for a deterministic one.
        """
        self._check_step(step)
        return self._update(x, noise, None, step, sde_noise)

    def multistep_dpm_solver_second_order_update(
        self,
        x: Float[Tensor, "batch *shape"],
        step: int,
        sde_noise: Float[Tensor, "batch *shape"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Make a step from the two estimates in `estimated_data`.

        Args:
            x: The latents.
            step: The index of the step; the last of the two estimates is its own.
            sde_noise: The noise of a stochastic step; None for a deterministic one.

        Raises:
            AssertionError: If there are no two estimates.
        """
        self._check_step(step)
        if len(self.estimated_data) < 2:
            raise AssertionError(f"the second order needs two estimates, got {len(self.estimated_data)}")
        previous, data = self.estimated_data
        return self._update(x, data, previous, step, sde_noise)

    def _update(self, x: Tensor, data: Tensor, previous: Tensor | None, step: int, sde_noise: Tensor | None) -> Tensor:
        factors = (self._ode_factors if sde_noise is None else self._sde_factors)[step]
        tensors, on_tensors = [x, data], [factors.x, factors.data]
        if previous is not None:
            tensors, on_tensors = [x, data, previous], [factors.x, factors.data + factors.slope, -factors.slope]
        if sde_noise is not None:
            tensors, on_tensors = [*tensors, sde_noise], [*on_tensors, factors.noise]
        return weighted_sum(tensors, on_tensors)
