"""DDIM."""

import dataclasses

from jaxtyping import Float, Shaped
from torch import Tensor

from refiners.foundationals.latent_diffusion.noise import Generators
from refiners.foundationals.latent_diffusion.solvers.params import TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.solver import Solver
from refiners.ops import weighted_sum


class DDIM(Solver):
    """The deterministic implicit model: estimate image and noise, and mix them for the next timestep.

    See [[arXiv:2010.02502] Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502), equation 12 with
    σ = 0. The last step ends at timestep 0, with the little noise that it has, as in the schedules that models were
    published with. (Historically this noise was left out.)
    """

    default_params = dataclasses.replace(
        Solver.default_params, timesteps_spacing=TimestepSpacing.LEADING, timesteps_offset=1
    )

    def _use_grid(self, timesteps: Shaped[Tensor, " steps"], signal: Table, noise: Table) -> None:
        super()._use_grid(timesteps, signal, noise)
        self._factors = [
            tuple(next_signal * data + next_std * noise for data, noise in zip(of_data, of_noise))
            for of_data, of_noise, (next_signal, next_std) in zip(self._data, self._noise, self._levels[1:])
        ]

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        return weighted_sum([x, predicted_noise], self._factors[step])
