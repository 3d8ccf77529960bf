"""What can be chosen of a solver."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import TypeVar

T = TypeVar("T", bound=Enum)


class NoiseSchedule(str, Enum):
    """How values are spaced: evenly after taking the root of order 1, 2 or 7, or evenly in their logarithm."""

    UNIFORM = "uniform"
    QUADRATIC = "quadratic"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"


class TimestepSpacing(str, Enum):
    """How the timesteps of inference are chosen among those of training; see `Solver.generate_timesteps`."""

    LINSPACE = "linspace"
    LINSPACE_ROUNDED = "linspace_rounded"
    LEADING = "leading"
    TRAILING = "trailing"
    TRAILING_ROUNDED = "trailing_rounded"
    CUSTOM = "custom"


class ModelPredictionType(str, Enum):
    """What the model predicts.

    With the noisy latents `a·x₀ + s·ε`: the noise `ε`, the sample `x₀` itself, or the velocity `a·ε - s·x₀` of
    [[arXiv:2202.00512] Progressive Distillation](https://arxiv.org/abs/2202.00512), appendix D.
    """

    NOISE = "noise"
    SAMPLE = "sample"
    VELOCITY = "velocity"


@dataclasses.dataclass(kw_only=True, frozen=True)
class BaseSolverParams:
    """The parameters of a solver, where None stands for the default of its class.

    Attributes:
        num_train_timesteps: The number of timesteps of training, at least 2.
        timesteps_spacing: How the timesteps of inference are chosen.
        timesteps_offset: What is added to timesteps, not negative. A timestep beyond the last one of training has the
            noise of the last one.
        initial_diffusion_rate: The variance added at the first timestep of training, between 0 and 1.
        final_diffusion_rate: The variance added at the last one, between 0 and 1.
        noise_schedule: How the variances between them are spaced.
        sigma_schedule: How the noise levels of inference are spaced; None takes those of the timesteps. The KARRAS
            schedule is equation 5 of [[arXiv:2206.00364]](https://arxiv.org/abs/2206.00364) with ρ = 7.
        model_prediction_type: What the model predicts.
        sde_variance: The variance of the noise added at each step; 0 for a deterministic solver.
        rescale_zero_terminal_snr: Whether the noise schedule is rescaled to leave no signal at the last timestep, for
            models that were trained so: [[arXiv:2305.08891] Common Diffusion Noise Schedules and Sample Steps are
            Flawed](https://arxiv.org/abs/2305.08891), algorithm 1.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a number is not one.
    """

    num_train_timesteps: int | None
    timesteps_spacing: TimestepSpacing | None
    timesteps_offset: int | None
    initial_diffusion_rate: float | None
    final_diffusion_rate: float | None
    noise_schedule: NoiseSchedule | None
    sigma_schedule: NoiseSchedule | None
    model_prediction_type: ModelPredictionType | None
    sde_variance: float
    rescale_zero_terminal_snr: bool | None

    def __post_init__(self) -> None:
        self._coerce("timesteps_spacing", TimestepSpacing)
        self._coerce("noise_schedule", NoiseSchedule)
        self._coerce("sigma_schedule", NoiseSchedule)
        self._coerce("model_prediction_type", ModelPredictionType)
        for name, least in (("num_train_timesteps", 2), ("timesteps_offset", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("initial_diffusion_rate", "final_diffusion_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {rate}")
        if not self.sde_variance >= 0:
            raise ValueError(f"sde_variance must not be negative, got {self.sde_variance}")

    def _coerce(self, name: str, kind: type[T]) -> None:
        """Accept the value of an enumeration, as files of settings have it, for the enumeration itself."""
        value = getattr(self, name)
        if value is None or isinstance(value, kind):
            return
        try:
            object.__setattr__(self, name, kind(value))
        except ValueError:
            raise ValueError(f"{name} must be one of {[item.value for item in kind]}, got {value!r}") from None


@dataclasses.dataclass(kw_only=True, frozen=True)
class SolverParams(BaseSolverParams):
    """Parameters for a solver. Those that are left out, or None, keep the default of the solver."""

    num_train_timesteps: int | None = None
    timesteps_spacing: TimestepSpacing | None = None
    timesteps_offset: int | None = None
    initial_diffusion_rate: float | None = None
    final_diffusion_rate: float | None = None
    noise_schedule: NoiseSchedule | None = None
    sigma_schedule: NoiseSchedule | None = None
    model_prediction_type: ModelPredictionType | None = None
    sde_variance: float = 0.0
    rescale_zero_terminal_snr: bool | None = None


@dataclasses.dataclass(kw_only=True, frozen=True)
class ResolvedSolverParams(BaseSolverParams):
    """The parameters of a solver, all known; only the sigma schedule may be None, for none."""

    num_train_timesteps: int
    timesteps_spacing: TimestepSpacing
    timesteps_offset: int
    initial_diffusion_rate: float
    final_diffusion_rate: float
    noise_schedule: NoiseSchedule
    sigma_schedule: NoiseSchedule | None
    model_prediction_type: ModelPredictionType
    sde_variance: float
    rescale_zero_terminal_snr: bool = False
