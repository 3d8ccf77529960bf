"""The base class of solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

from refiners.foundationals.latent_diffusion.noise import Generators, check_generator
from refiners.foundationals.latent_diffusion.solvers import schedule
from refiners.foundationals.latent_diffusion.solvers.arithmetic import wide
from refiners.foundationals.latent_diffusion.solvers.params import (
    BaseSolverParams,
    ModelPredictionType,
    NoiseSchedule,
    ResolvedSolverParams,
    SolverParams,
    TimestepSpacing,
)
from refiners.foundationals.latent_diffusion.solvers.process import DiffusionProcess
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.ops import weighted_sum

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BaseSolverParams",
    "ModelPredictionType",
    "NoiseSchedule",
    "ResolvedSolverParams",
    "Solver",
    "SolverParams",
    "TimestepSpacing",
]


class Solver(DiffusionProcess, ABC):
    """A way to turn noise into latents, step by step, with a model that tells noise from image.

    At step `i` the latents are `aᵢ·x₀ + sᵢ·ε`, an image and noise. A step is a sum of the latents, the prediction, what
    earlier steps left and new noise. Its factors are computed when the solver is built, in float64, and are numbers: a
    step reads nothing back from the device. Sums of 16-bit tensors are made in float32 and rounded once; the result has
    the dtype of the latents.

    To sample:

    1. `x = solver.initial_latents(noise)`, or `solver.initial_latents(noise, encoded_image)` for image to image;
    2. for each step of `inference_steps`, show `solver.scale_model_input(x, step)` and `solver.timesteps[step]` to the
       model, then `x = solver(x, prediction, step)`.

    See `DiffusionProcess` for the tables of training.

    Attributes:
        num_inference_steps: The number of calls of the model.
        first_inference_step: The step to begin at.
    """

    def __init__(
        self,
        num_inference_steps: int,
        first_inference_step: int = 0,
        params: BaseSolverParams | None = None,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Compute timesteps, noise levels and factors.

        Args:
            num_inference_steps: The number of calls of the model, from 1 to the number of timesteps of training.
            first_inference_step: The step to begin at, for image to image.
            params: What to change of the default parameters of the solver.
            device: Where to put the tensors.
            dtype: Their dtype; integer timesteps keep theirs.

        Raises:
            ValueError: If an argument is out of range.
            NotImplementedError: If the solver has no such parameter.
        """
        _check_integer("num_inference_steps", num_inference_steps)
        _check_integer("first_inference_step", first_inference_step)
        self.num_inference_steps = int(num_inference_steps)
        self.first_inference_step = int(first_inference_step)
        with torch.device("cpu"):  # numbers are read from them, whatever the default is
            super().__init__(params)
            self._use_grid(*self._initial_grid())
        if not 0 <= first_inference_step < len(self.timesteps):
            raise ValueError(
                f"first_inference_step must be from 0 to {len(self.timesteps) - 1}, got {first_inference_step}"
            )
        self.to(device=device, dtype=dtype)

    # Timesteps and noise levels of inference

    def _generate_timesteps(self) -> Shaped[Tensor, " steps"]:
        return self.generate_timesteps(
            self.params.timesteps_spacing,
            self.num_inference_steps,
            self.params.num_train_timesteps,
            self.params.timesteps_offset,
        )

    def _initial_grid(self) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        """Choose the timesteps, and the factors of image and noise at each of them and after the last step."""
        return self._grid_at(self._generate_timesteps())

    def _grid_at(self, timesteps: Tensor) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        """Give the grid of some timesteps. After the last step it is at timestep 0, as published models end."""
        signal = schedule.interpolate(self._signal_table, np.append(schedule.as_table(timesteps), 0.0))
        return timesteps, signal, np.sqrt(1 - signal**2)

    def _use_grid(self, timesteps: Tensor, signal: Table, noise: Table) -> None:
        """Compute all that the steps need. Subclasses add what they need themselves."""
        prediction = self.params.model_prediction_type
        levels: list[tuple[float, float]] = list(zip(signal.tolist(), noise.tolist()))
        data = [schedule.data_coefficients(*level, prediction) for level in levels[:-1]]  # may raise
        self._data = data
        self._noise = [schedule.noise_coefficients(*level, prediction) for level in levels[:-1]]
        self._levels = levels
        self._timesteps = timesteps
        self.reset()

    @property
    def timesteps(self) -> Shaped[Tensor, " steps"]:
        """The timesteps that the model is told.

        Others may be assigned, as many as there are: noise levels and factors follow. A change of dtype does not reach
        them, since 16 bits do not hold them.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Shaped[Tensor, " steps"]) -> None:
        if timesteps.shape != self._timesteps.shape:
            raise ValueError(
                f"timesteps must have the shape {tuple(self._timesteps.shape)}, got {tuple(timesteps.shape)}"
            )
        if (timesteps.diff() > 0).any():
            raise ValueError(f"timesteps must descend, got {timesteps.tolist()}")
        device, dtype = self.device, self.dtype
        self._use_grid(*self._grid_at(timesteps))
        self.to(device=device, dtype=dtype)

    @property
    def all_steps(self) -> list[int]:
        """The steps from 0."""
        return list(range(len(self._timesteps)))

    @property
    def inference_steps(self) -> list[int]:
        """The steps to make, those from `first_inference_step` on."""
        return self.all_steps[self.first_inference_step :]

    # Steps

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Make one step.

        Args:
            x: The latents.
            predicted_noise: What the model predicted: noise, or what `params.model_prediction_type` says.
            step: The index of the step.
            generator: Where random numbers come from, if any are needed: the default of the device, one generator, or a
                list of one for each sample, with which each sample becomes what it would become alone.

        Returns:
            The latents after the step, in the dtype of `x`.

        Raises:
            AssertionError: If the step is not one of `inference_steps`.
            ValueError: If shapes differ, or there is not one generator for each sample.
        """

    def reset(self) -> None:
        """Forget the steps made so far. It also happens at `first_inference_step`; most solvers remember nothing."""

    def predict_data(
        self, x: Float[Tensor, "*shape"], predicted_noise: Float[Tensor, "*shape"], step: int
    ) -> Float[Tensor, "*shape"]:
        """Estimate the image in the latents of a step by what the model predicted, whatever it predicts."""
        self._check_step(step)
        return self._predict_data(x, predicted_noise, step, x.dtype)

    def _predict_data(self, x: Tensor, prediction: Tensor, step: int, dtype: DType) -> Tensor:
        return weighted_sum([x, prediction], self._data[step], dtype)

    def predict_noise(
        self, x: Float[Tensor, "*shape"], predicted_noise: Float[Tensor, "*shape"], step: int
    ) -> Float[Tensor, "*shape"]:
        """Estimate the noise in the latents of a step by what the model predicted, whatever it predicts."""
        self._check_step(step)
        return self._predict_noise(x, predicted_noise, step, x.dtype)

    def _predict_noise(self, x: Tensor, prediction: Tensor, step: int, dtype: DType) -> Tensor:
        return weighted_sum([x, prediction], self._noise[step], dtype)

    def add_noise(
        self, x: Float[Tensor, "batch *shape"], noise: Float[Tensor, "batch *shape"], step: int | list[int]
    ) -> Float[Tensor, "batch *shape"]:
        """Make the latents that an image has at a step: `a·x + s·noise`, with the factors of that step.

        Args:
            x: The encoded image.
            noise: Normal noise.
            step: The index of the step, or one for each sample.

        Raises:
            AssertionError: If the step is not one of `all_steps`, or there is not one for each sample.
        """
        if isinstance(step, list):
            return self._add_noises(x, noise, step)
        self._check_step(step)
        return weighted_sum([x, noise], self._levels[step])

    def _add_noises(self, x: Tensor, noise: Tensor, steps: list[int]) -> Tensor:
        if not len(x) == len(noise) == len(steps):
            raise AssertionError(
                f"x, noise, and step must have the same length, got {len(x)}, {len(noise)} and {len(steps)}"
            )
        for step in steps:
            self._check_step(step)
        factors = torch.tensor([self._levels[step] for step in steps], dtype=wide(x, noise)).to(x.device)
        signal, std = factors.T.reshape(2, -1, *[1] * (x.ndim - 1))
        return torch.addcmul(signal * x, std, noise.to(std.dtype)).to(x.dtype)

    def remove_noise(
        self, x: Float[Tensor, "batch *shape"], noise: Float[Tensor, "batch *shape"], step: int
    ) -> Float[Tensor, "batch *shape"]:
        """Undo `add_noise`: `(x - s·noise) / a`.

        Raises:
            AssertionError: If the step is not one of `all_steps`.
            ValueError: If the latents of the step are noise alone.
        """
        self._check_step(step)
        signal, std = self._levels[step]
        if signal == 0:
            raise ValueError(f"step {step} has no signal: its latents are noise alone")
        return weighted_sum([x, noise], [1 / signal, -std / signal])

    def scale_model_input(self, x: Float[Tensor, "*shape"], step: int) -> Float[Tensor, "*shape"]:
        """Scale the latents of a step to what the model expects.

        Args:
            x: The latents; for step -1, noise of variance 1.
            step: The index of the step, or -1 to make latents of noise alone. Latents that `add_noise` made have the
                right scale already: they are not for step -1. See `initial_latents`, which knows.

        Raises:
            AssertionError: If the step is neither -1 nor one of `all_steps`.
        """
        if step != -1:
            self._check_step(step)
        return x

    def initial_latents(
        self, noise: Float[Tensor, "batch *shape"], image_latents: Float[Tensor, "batch *shape"] | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Make the latents to begin with, at `first_inference_step`: noise alone, or an encoded image and noise.

        Args:
            noise: Noise of variance 1.
            image_latents: The encoded image.
        """
        if image_latents is None:
            return self.scale_model_input(noise, step=-1)
        return self.add_noise(image_latents, noise, self.first_inference_step)

    def _check_step(self, step: int, first: int = 0) -> None:
        _check_integer("step", step)
        if not first <= step < len(self._timesteps):
            raise AssertionError(f"invalid step {step}: must be from {first} to {len(self._timesteps) - 1}")

    def _check_call(self, x: Tensor, prediction: Tensor, step: int, generator: Generators) -> None:
        self._check_step(step, self.first_inference_step)
        if x.shape != prediction.shape:
            raise ValueError(f"predicted_noise must have the shape {tuple(x.shape)}, got {tuple(prediction.shape)}")
        check_generator(generator, x)

    # The solver itself

    def rebuild(self, num_inference_steps: int | None, first_inference_step: int | None = None) -> Self:
        """Build a new solver with the same parameters, options, device and dtype, that has made no step.

        Args:
            num_inference_steps: The number of calls of the model; None keeps it.
            first_inference_step: The step to begin at; None keeps it.
        """
        return type(self)(
            num_inference_steps=self.num_inference_steps if num_inference_steps is None else num_inference_steps,
            first_inference_step=self.first_inference_step if first_inference_step is None else first_inference_step,
            device=self.device,
            dtype=self.dtype,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        """Give the other arguments that a solver like this one is built with."""
        return {"params": self.params}


def _check_integer(name: str, value: object) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):  # integers of numpy are integers
        raise TypeError(f"{name} must be an integer, got {value!r}")
