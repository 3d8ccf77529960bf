"""UniPC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

from refiners.foundationals.latent_diffusion.noise import Generators
from refiners.foundationals.latent_diffusion.solvers.arithmetic import wide
from refiners.foundationals.latent_diffusion.solvers.multistep_solver import MultistepSolver
from refiners.foundationals.latent_diffusion.solvers.params import BaseSolverParams
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.ops import weighted_sum


class UniPC(MultistepSolver):
    """A predictor for the next latents, and a corrector that reuses the call of the model at them.

    See [[arXiv:2302.04867] UniPC](https://arxiv.org/abs/2302.04867), algorithms 1 and 2 with estimates of the image and
    `B(h) = exp(h) - 1`. The first steps, and the last ones, have the order that there are steps for.

    The latents of the step before, which the corrector changes, are part of the state: what is changed in `x` between
    steps counts for the estimate of the image alone.
    """

    def __init__(
        self,
        num_inference_steps: int,
        first_inference_step: int = 0,
        params: BaseSolverParams | None = None,
        order: int = 2,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Compute timesteps, noise levels and factors.

        Args:
            num_inference_steps: The number of calls of the model.
            first_inference_step: The step to begin at.
            params: What to change of the default parameters.
            order: The order of the predictor, 1, 2 or 3; with the corrector that of the method is one more.
            device: Where to put the tensors.
            dtype: Their dtype.

        Raises:
            ValueError: If the order is not one of these.
        """
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        self.order = order
        super().__init__(
            num_inference_steps, first_inference_step=first_inference_step, params=params, device=device, dtype=dtype
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "order": self.order}

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._predictors = [[self._predictor(step, order) for order in self._orders(step)] for step in self.all_steps]
        self._correctors = [[self._corrector(step, order) for order in self._orders(step)] for step in self.all_steps]
        self._steps = [self._corrected_predictors(step) for step in self.all_steps]

    def _orders(self, step: int) -> range:
        """List the orders that the step from `step` on can have, by what is before and after it."""
        distinct = 0  # how many steps before this one went somewhere
        while distinct < step and self._increments[step - 1 - distinct] > 0:
            distinct += 1
        return range(1, min(self.order, distinct + 1, len(self._timesteps) - step) + 1)

    def _predictor(self, step: int, order: int) -> list[float]:
        """Compute the factors of the latents and of the estimates, the last one first, in the next latents."""
        h = self._increments[step]
        if h == 0:
            return [1.0]
        positions = self._positions(step, order)
        weights = [0.5] if order == 2 else _weights(h, positions) if order > 1 else []
        return self._factors_of(step, h, positions, weights)

    def _corrector(self, step: int, order: int) -> list[float]:
        """Compute the factors of the latents, of the estimates as in `_predictor`, and of that at the next latents."""
        h = self._increments[step]
        if h == 0:
            return [1.0]
        positions = [*self._positions(step, order), 1.0]
        weights = [0.5] if order == 1 else _weights(h, positions)
        return self._factors_of(step, h, positions, weights)

    def _corrected_predictors(self, step: int) -> list[list[list[float]]]:
        """Compute the factors of correction and prediction in one, by the order of the last step and by its own.

        They are those of the latents that the last step predicted, of the estimate at them, and of the estimates
        before, the last one first. Predictor and corrector begin alike: what corrects is a sum of estimates.
        """
        if step == 0:
            return []
        tables: list[list[list[float]]] = []
        for predictor, corrector in zip(self._predictors[step - 1], self._correctors[step - 1]):
            changes = [after - before for after, before in zip(corrector[1:-1], predictor[1:])]
            corrections = [*corrector[-1:], *changes] if len(corrector) > 1 else []
            tables.append(
                [
                    [of_x, *(a + of_x * b for a, b in zip_longest(estimates, corrections, fillvalue=0.0))]
                    for of_x, *estimates in self._predictors[step]
                ]
            )
        return tables

    def _positions(self, step: int, order: int) -> list[float]:
        """Give the steps before in units of the present one, `r` of the paper."""
        return [(self._ratios[step - k] - self._ratios[step]) / self._increments[step] for k in range(1, order)]

    def _factors_of(self, step: int, h: float, positions: Sequence[float], weights: Sequence[float]) -> list[float]:
        next_signal, next_std = self._levels[step + 1]
        changed = -next_signal * math.expm1(-h)
        others = [changed * weight / position for weight, position in zip(weights, positions)]
        return [next_std / self._levels[step][1], changed - sum(others), *others]

    def reset(self) -> None:
        """Forget the estimates of the steps made so far, and the latents that the last one predicted."""
        super().reset()
        self._predicted: Tensor | None = None
        self._last_order = 0

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
        before = [*reversed(self.estimated_data)]  # the last one first
        order = min(len(before) + 1, len(self._predictors[step]))
        latents = x if self._predicted is None else self._predicted
        by_order = self._predictors[step] if self._predicted is None else self._steps[step][self._last_order - 1]
        factors = by_order[order - 1]
        predicted = weighted_sum([latents, data, *before][: len(factors)], factors, wide(x))
        self._remember(step, data)
        self._predicted, self._last_order = predicted, order
        return predicted.to(x.dtype, copy=True)  # the caller may write to it

    _keep_dtype = MultistepSolver._keep_dtype | {"_predicted"}


def _weights(h: float, positions: Sequence[float]) -> list[float]:
    """Solve for the weights of differences of estimates that make the step exact for polynomials: ρ of the paper."""
    order = len(positions)
    changed = math.expm1(-h)
    moment, factorial, moments = changed / -h - 1, 1, list[float]()
    for power in range(1, order + 1):
        moments.append(moment * factorial / changed)
        factorial *= power + 1
        moment = moment / -h - 1 / factorial
    powers = np.array(positions)[None, :] ** np.arange(order)[:, None]
    return np.linalg.solve(powers, np.array(moments)).tolist()
