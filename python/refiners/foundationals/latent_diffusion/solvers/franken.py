"""Schedulers of diffusers as solvers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, device as Device, dtype as DType

from refiners.foundationals.latent_diffusion.noise import Generators
from refiners.foundationals.latent_diffusion.solvers.arithmetic import wide
from refiners.foundationals.latent_diffusion.solvers.params import TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.schedule import Table
from refiners.foundationals.latent_diffusion.solvers.solver import Solver


class SchedulerLike(Protocol):
    """What is used of a scheduler of diffusers."""

    @property
    def init_noise_sigma(self) -> Tensor | float: ...

    @property
    def timesteps(self) -> Tensor: ...

    def set_timesteps(self, num_inference_steps: int) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any: ...


class FrankenSolver(Solver):
    """Any scheduler of diffusers, as a solver: its steps, bit by bit.

    Noise is added, and removed, as the scheduler does it, if it does. The tables of training (`scale_factors` and those
    that follow from it) are the default ones, whatever the scheduler has, and there are no estimates (`predict_data`).

    ```python
    solver = FrankenSolver(lambda: PNDMScheduler.from_pretrained(...), num_inference_steps=30)
    ```
    """

    default_params = dataclasses.replace(Solver.default_params, timesteps_spacing=TimestepSpacing.CUSTOM)

    def __init__(
        self,
        get_diffusers_scheduler: Callable[[], SchedulerLike],
        num_inference_steps: int,
        first_inference_step: int = 0,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
        **kwargs: Any,
    ) -> None:
        """Make a scheduler and let it choose its timesteps.

        Args:
            get_diffusers_scheduler: Makes a new scheduler; also called by `rebuild`.
            num_inference_steps: The number of steps that the scheduler is asked for.
            first_inference_step: The step to begin at.
            device: Where to put the tensors.
            dtype: Their dtype.
            **kwargs: Ignored, so that other solvers can be replaced by this one.
        """
        self.get_diffusers_scheduler = get_diffusers_scheduler
        super().__init__(num_inference_steps, first_inference_step=first_inference_step, device=device, dtype=dtype)

    def _options(self) -> dict[str, Any]:
        return {"get_diffusers_scheduler": self.get_diffusers_scheduler}

    def _generate_timesteps(self) -> Shaped[Tensor, " steps"]:
        self._next_step = self.first_inference_step
        self.diffusers_scheduler = self.get_diffusers_scheduler()
        self.diffusers_scheduler.set_timesteps(self.num_inference_steps)
        return self.diffusers_scheduler.timesteps

    def _initial_grid(self) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        return super()._grid_at(self._generate_timesteps())

    def _grid_at(self, timesteps: Shaped[Tensor, " steps"]) -> tuple[Shaped[Tensor, " steps"], Table, Table]:
        raise NotImplementedError("timesteps are those of the scheduler: they cannot be assigned")

    def _predict_data(self, x: Tensor, prediction: Tensor, step: int, dtype: DType) -> Tensor:
        raise NotImplementedError("what the prediction is, only the scheduler knows")

    def _predict_noise(self, x: Tensor, prediction: Tensor, step: int, dtype: DType) -> Tensor:
        raise NotImplementedError("what the prediction is, only the scheduler knows")

    def reset(self) -> None:
        self.diffusers_scheduler.set_timesteps(self.num_inference_steps)  # forgets the steps made so far
        self._next_step = self.first_inference_step

    def _timestep(self, step: int) -> Tensor:
        return self.diffusers_scheduler.timesteps[step]

    def scale_model_input(self, x: Float[Tensor, "*shape"], step: int) -> Float[Tensor, "*shape"]:
        """Let the scheduler scale the latents; for step -1, multiply noise by its `init_noise_sigma`."""
        if step == -1:
            return x * self.diffusers_scheduler.init_noise_sigma
        self._check_step(step)
        return self.diffusers_scheduler.scale_model_input(x, self._timestep(step))

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted_noise: Float[Tensor, "batch *shape"],
        step: int,
        generator: Generators = None,
    ) -> Float[Tensor, "batch *shape"]:
        self._check_call(x, predicted_noise, step, generator)
        if step == self.first_inference_step:
            self.reset()
        counts = getattr(self.diffusers_scheduler, "step_index", None) is not None
        if counts and step != self._next_step:  # it would take the step that it has counted
            raise AssertionError(
                f"a scheduler takes its steps in order: expected step {self._next_step}, or {self.first_inference_step}"
                f" to begin anew, got {step}"
            )
        make_step = self.diffusers_scheduler.step
        options: dict[str, Any] = {}
        if generator is not None and "generator" in inspect.signature(make_step).parameters:
            options["generator"] = generator  # others are deterministic
        result = make_step(predicted_noise, self._timestep(step), x, **options)
        if isinstance(result, tuple):
            raise AssertionError("the scheduler must return an object with `prev_sample`, got a tuple")
        self._next_step = step + 1
        return result.prev_sample

    def add_noise(
        self, x: Float[Tensor, "batch *shape"], noise: Float[Tensor, "batch *shape"], step: int | list[int]
    ) -> Float[Tensor, "batch *shape"]:
        """Let the scheduler add noise; see `Solver.add_noise`."""
        add_noise = getattr(self.diffusers_scheduler, "add_noise", None)
        if add_noise is None:
            return super().add_noise(x, noise, step)
        steps = step if isinstance(step, list) else [step] * len(x)
        if not len(x) == len(noise) == len(steps):
            raise AssertionError(
                f"x, noise, and step must have the same length, got {len(x)}, {len(noise)} and {len(steps)}"
            )
        for item in steps:
            self._check_step(item)
        return add_noise(x, noise, self.diffusers_scheduler.timesteps[steps])

    def remove_noise(
        self, x: Float[Tensor, "batch *shape"], noise: Float[Tensor, "batch *shape"], step: int
    ) -> Float[Tensor, "batch *shape"]:
        """Undo what the scheduler does to add noise; see `Solver.remove_noise`."""
        self._check_step(step)
        one = torch.ones(1, device=x.device, dtype=wide(x))
        signal, std = self.add_noise(one, one * 0, step), self.add_noise(one * 0, one, step)
        return ((x - std * noise) / signal).to(x.dtype)
