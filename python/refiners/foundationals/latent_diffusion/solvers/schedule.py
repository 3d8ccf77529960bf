"""Timesteps and noise levels, as tables in float64."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refiners.foundationals.latent_diffusion.solvers.params import ModelPredictionType, NoiseSchedule, TimestepSpacing

Table: TypeAlias = NDArray[np.float64]

# A noise level without any signal is infinite. Where levels must be finite, this one is taken for it: the signal that
# is left, 2⁻¹², is lost in the noise. Other libraries take the same one.
LARGEST_SIGMA = math.sqrt(2**24 - 1)


def as_table(tensor: Tensor) -> Table:
    """Read a tensor into a table."""
    return tensor.detach().cpu().double().numpy()


def spaced(schedule: NoiseSchedule, first: float, last: float, count: int) -> Table:
    """Space values from `first` to `last`, both of them exact, as a schedule says.

    See [[arXiv:2206.00364] Elucidating the Design Space](https://arxiv.org/abs/2206.00364), equation 5, where the power
    is ρ; EXPONENTIAL is its limit for large ρ.

    Args:
        schedule: The schedule.
        first: The first value, positive.
        last: The last value, positive.
        count: How many values; a single one is the first.
    """
    if schedule == NoiseSchedule.EXPONENTIAL:
        values: Table = np.exp(_linspace(math.log(first), math.log(last), count))
    else:
        power = {NoiseSchedule.UNIFORM: 1, NoiseSchedule.QUADRATIC: 2, NoiseSchedule.KARRAS: 7}[schedule]
        values = power_spaced(first, last, count, power)
    return with_ends(values, first, last)


def power_spaced(first: float, last: float, count: int, power: float) -> Table:
    """Space values evenly after taking their root of order `power`."""
    return _linspace(first ** (1 / power), last ** (1 / power), count) ** power


def with_ends(values: Table, first: float, last: float) -> Table:
    """Put exact values at the ends of a table; a single value is the first."""
    values[-1] = last
    values[0] = first
    return values


def rescale_zero_terminal_snr(signal: Table) -> Table:
    """Shift and scale the factors of the signal so that the last one is zero and the first one stays.

    See [[arXiv:2305.08891] Common Diffusion Noise Schedules and Sample Steps are
    Flawed](https://arxiv.org/abs/2305.08891), algorithm 1.
    """
    first, last = signal[0], signal[-1]
    return with_ends((signal - last) * (first / (first - last)), first, 0.0)


def timesteps(spacing: TimestepSpacing, count: int, num_train_timesteps: int, offset: int) -> Table:
    """Compute timesteps in descending order; see `Solver.generate_timesteps`."""
    check_count(count, num_train_timesteps)
    steps: Table = np.arange(count, dtype=np.float64)
    last = num_train_timesteps - 1 + offset
    match spacing:
        case TimestepSpacing.LINSPACE:
            return _linspace(offset, last, count)[::-1]
        case TimestepSpacing.LINSPACE_ROUNDED:
            return _rounded(_linspace(offset, last, count))[::-1]
        case TimestepSpacing.LEADING:
            return offset + steps[::-1] * (num_train_timesteps // count)
        case TimestepSpacing.TRAILING:
            return last - steps * (num_train_timesteps // count)
        case TimestepSpacing.TRAILING_ROUNDED:
            return _rounded(num_train_timesteps * (count - steps) / count) - 1 + offset
        case TimestepSpacing.CUSTOM:
            raise RuntimeError("timesteps of the spacing CUSTOM are made by each solver itself")


def intervals(count: int, num_train_timesteps: int, offset: int) -> Table:
    """Divide the timesteps of training into intervals, and give their upper ends, rounded, in descending order."""
    check_count(count, num_train_timesteps)
    return _rounded(_linspace(offset, num_train_timesteps - 1 + offset, count + 1))[:0:-1]


def _linspace(first: float, last: float, count: int) -> Table:
    values: Table = np.linspace(first, last, count)
    return values


def _rounded(values: Table) -> Table:
    rounded: Table = np.round(values)  # half to even
    return rounded


def check_count(count: int, num_train_timesteps: int) -> None:
    """Raise ValueError unless there are as many timesteps to choose from."""
    if not 1 <= count <= num_train_timesteps:
        raise ValueError(f"num_inference_steps must be from 1 to {num_train_timesteps}, got {count}")


def interpolate(table: Table, positions: Table) -> Table:
    """Read a table between its entries; beyond its ends, the first or the last one."""
    values: Table = np.interp(positions, np.arange(len(table)), table)
    return values


def positions_of(sigmas: Table, table: Table) -> Table:
    """Find where noise levels stand in an ascending table of them, interpolating their logarithms."""
    positions: Table = np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
    return positions


def data_coefficients(signal: float, noise: float, prediction: ModelPredictionType) -> tuple[float, float]:
    """Say how latents and prediction make the image: the factors of both in `x₀`.

    Args:
        signal: The factor of the image in the latents.
        noise: The factor of the noise in them. The prediction of velocity is of the latents scaled to variance 1.
        prediction: What the model predicts.

    Raises:
        ValueError: If the noise is predicted where nothing else is left.
    """
    size = math.hypot(signal, noise)
    match prediction:
        case ModelPredictionType.NOISE:
            if signal == 0:
                raise ValueError(
                    "model_prediction_type must be VELOCITY or SAMPLE, got NOISE: after rescale_zero_terminal_snr"
                    " the last timestep has no signal, and of its noise nothing is to be learned"
                )
            return 1 / signal, -noise / signal
        case ModelPredictionType.SAMPLE:
            return 0.0, 1.0
        case ModelPredictionType.VELOCITY:
            return signal / size**2, -noise / size


def noise_coefficients(signal: float, noise: float, prediction: ModelPredictionType) -> tuple[float, float]:
    """Say how latents and prediction make the noise: the factors of both in `ε`; see `data_coefficients`."""
    size = math.hypot(signal, noise)
    match prediction:
        case ModelPredictionType.NOISE:
            return 0.0, 1.0
        case ModelPredictionType.SAMPLE:
            return 1 / noise, -signal / noise
        case ModelPredictionType.VELOCITY:
            return noise / size**2, signal / size


def sigma_table(signal: Table, noise: Table) -> Table:
    """Compute noise levels relative to the signal, `s / a`, but at most `LARGEST_SIGMA`."""
    return noise / np.maximum(signal, noise / LARGEST_SIGMA)
