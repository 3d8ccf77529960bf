"""What training did to images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.solvers import schedule
from refiners.foundationals.latent_diffusion.solvers.params import (
    BaseSolverParams,
    ModelPredictionType,
    NoiseSchedule,
    ResolvedSolverParams,
    TimestepSpacing,
)
from refiners.foundationals.latent_diffusion.solvers.schedule import Table

if TYPE_CHECKING:
    from typing_extensions import Self


class DiffusionProcess(fl.Module):
    """The noise that images were given in training, as tables with an entry for each timestep.

    Tensors are plain attributes: they are no part of the state dict, and move with the module.

    Attributes:
        params: The parameters.
        scale_factors: One minus the variance added, at each of the T timesteps of training.
        cumulative_scale_factors: The factor `a` of the image at each of them.
        noise_std: The factor `s` of the noise at each of them.
        signal_to_noise_ratios: `log a - log s` at each of them.
    """

    params: ResolvedSolverParams
    scale_factors: Float[Tensor, " timesteps"]
    cumulative_scale_factors: Float[Tensor, " levels"]
    noise_std: Float[Tensor, " levels"]
    signal_to_noise_ratios: Float[Tensor, " levels"]

    default_params: ClassVar[ResolvedSolverParams] = ResolvedSolverParams(
        num_train_timesteps=1000,
        timesteps_spacing=TimestepSpacing.LINSPACE,
        timesteps_offset=0,
        initial_diffusion_rate=8.5e-4,
        final_diffusion_rate=1.2e-2,
        noise_schedule=NoiseSchedule.QUADRATIC,
        sigma_schedule=None,
        model_prediction_type=ModelPredictionType.NOISE,
        sde_variance=0.0,
        rescale_zero_terminal_snr=False,
    )
    supports_sigma_schedule: ClassVar[bool] = False
    sde_variances: ClassVar[tuple[float, ...]] = (0.0,)  # those that are supported

    def __init__(self, params: BaseSolverParams | None = None) -> None:
        super().__init__()
        self.params = self.resolve_params(params)
        self._check_params()
        self._set_tables(self.sample_noise_schedule())

    @classmethod
    def resolve_params(cls, params: BaseSolverParams | None) -> ResolvedSolverParams:
        """Fill in the defaults of the class where parameters are None."""
        if params is None:
            return cls.default_params
        given = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
        return dataclasses.replace(cls.default_params, **{k: value for k, value in given.items() if value is not None})

    def _check_params(self) -> None:
        if self.params.sde_variance not in self.sde_variances:
            raise NotImplementedError(
                f"sde_variance of {type(self).__name__} must be in {self.sde_variances}, got {self.params.sde_variance}"
            )
        if self.params.sigma_schedule is not None and not self.supports_sigma_schedule:
            raise NotImplementedError(f"{type(self).__name__} has no sigma_schedule, got {self.params.sigma_schedule}")

    def sample_power_distribution(self, power: float = 2) -> Float[Tensor, " timesteps"]:
        """Space the variances of training evenly after taking their root of order `power`; in float64, on the CPU."""
        first, last = self.params.initial_diffusion_rate, self.params.final_diffusion_rate
        values = schedule.power_spaced(first, last, self.params.num_train_timesteps, power)
        return torch.from_numpy(schedule.with_ends(values, first, last))

    def sample_noise_schedule(self) -> Float[Tensor, " timesteps"]:
        """Compute one minus the variance that training adds at each timestep; in float64, on the CPU."""
        first, last = self.params.initial_diffusion_rate, self.params.final_diffusion_rate
        rates = schedule.spaced(self.params.noise_schedule, first, last, self.params.num_train_timesteps)
        return torch.from_numpy(1 - rates)

    def _set_tables(self, scale_factors: Tensor) -> None:
        factors = scale_factors.cpu().double().numpy()
        signal = np.sqrt(np.cumprod(factors))
        if self.params.rescale_zero_terminal_snr:
            signal = schedule.rescale_zero_terminal_snr(signal)
            factors = np.concatenate([factors[:1], (signal[1:] / signal[:-1]) ** 2])
        self._signal_table: Table = signal
        self._noise_table: Table = np.sqrt(1 - signal**2)
        self.scale_factors = torch.tensor(factors)
        self._publish_levels(self._signal_table, self._noise_table)

    def _publish_levels(self, signal: Table, noise: Table) -> None:
        with np.errstate(divide="ignore"):
            ratios = np.log(signal) - np.log(noise)
        self.cumulative_scale_factors = torch.tensor(signal)
        self.noise_std = torch.tensor(noise)
        self.signal_to_noise_ratios = torch.tensor(ratios)

    @staticmethod
    def generate_timesteps(
        spacing: TimestepSpacing, num_inference_steps: int, num_train_timesteps: int = 1000, offset: int = 0
    ) -> Shaped[Tensor, " steps"]:
        """Choose timesteps, in descending order.

        See [[arXiv:2305.08891] Common Diffusion Noise Schedules and Sample Steps are
        Flawed](https://arxiv.org/abs/2305.08891), table 2. With `n` timesteps of `T`:

        - LINSPACE: evenly spaced from `T - 1` to 0, in float32; a single one is 0.
        - LINSPACE_ROUNDED: the same as integers.
        - LEADING: multiples of `T // n`, from 0 up.
        - TRAILING: from `T - 1` down by `T // n`.
        - TRAILING_ROUNDED: from `T - 1` down by `T / n`, rounded. It differs from TRAILING where `n` does not divide
          `T`, and there it reaches as low as it should.

        Args:
            spacing: The spacing.
            num_inference_steps: How many.
            num_train_timesteps: The number of timesteps of training.
            offset: What is added to each.

        Returns:
            The timesteps, int64 but for LINSPACE.

        Raises:
            ValueError: If there are not so many timesteps.
            RuntimeError: If the spacing is CUSTOM.
        """
        values = schedule.timesteps(TimestepSpacing(spacing), num_inference_steps, num_train_timesteps, offset)
        dtype = torch.float32 if spacing == TimestepSpacing.LINSPACE else torch.int64
        return torch.tensor(values.tolist(), dtype=dtype)

    @property
    def device(self) -> Device:
        """Where the tensors are; may be assigned."""
        return self.scale_factors.device

    @device.setter
    def device(self, device: Device | str) -> None:
        self.to(device=device)

    @property
    def dtype(self) -> DType:
        """The dtype of the tensors but the timesteps; may be assigned."""
        return self.scale_factors.dtype

    @dtype.setter
    def dtype(self, dtype: DType) -> None:
        self.to(dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # behind `to`, `cuda`, `half`, ...
        super()._apply(fn, recurse)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(fn(value).device) if name in self._keep_dtype else fn(value))
        return self

    _keep_dtype: ClassVar[frozenset[str]] = frozenset({"_timesteps"})  # of tensors whose dtype is their own
