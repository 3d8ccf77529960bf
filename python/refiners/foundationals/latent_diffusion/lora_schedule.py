"""Multipliers of LoRAs that change from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

from torch import nn

from refiners.fluxion.adapters.lora import LayerUpdate
from refiners.fluxion.adapters.lora.search import find_updates
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

_KEY = "_lora_schedules"  # where a model has them

Schedule: TypeAlias = Callable[[float], float]
"""Gives a multiplier for how far the generation is, from 0 (the first step from noise) to 1 (the last)."""


class LoraSchedules:
    """Multiply updates by a number for each step of a model while it takes the step.

    A model has one of these, which copies of the model have copies of: all who manage its LoRAs share it.

    Args:
        model: The model.
    """

    def __init__(self, model: LatentDiffusionModel) -> None:
        self.model = model
        self.by_name: dict[str, Schedule] = {}
        self._hooks: list[Any] = []
        self._before: list[tuple[LayerUpdate, float]] = []

    @classmethod
    def of(cls, model: LatentDiffusionModel) -> LoraSchedules:
        """Give the schedules of a model."""
        state: dict[str, Any] = vars(model)
        schedules: LoraSchedules | None = state.get(_KEY)
        if schedules is None or schedules.model is not model:
            schedules = state[_KEY] = cls(model)
        return schedules

    def set(self, name: str, schedule: Schedule | None) -> None:
        """Give the updates of a name a schedule, or none.

        Raises:
            TypeError: If it cannot be called.
        """
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of a number, or None, got {type(schedule).__name__}")
        self.restore()
        if schedule is None:
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = schedule
        if self.by_name and not self._hooks:
            self._hooks = [
                self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
                self.model.register_forward_hook(self._end, always_call=True),
            ]
        elif not self.by_name:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def restore(self) -> None:
        """Give the updates the multipliers that they had before a step: an interruption leaves it without an end."""
        while self._before:
            update, factor = self._before.pop()
            update.factor = factor

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.restore()
        step = kwargs.get("step", args[1] if len(args) > 1 else None)
        if module is not self.model or not isinstance(step, int):
            return  # a call that the model refuses
        progress = step / max(1, self.model.solver.num_inference_steps - 1)
        factors = {name: _factor(name, schedule(progress)) for name, schedule in self.by_name.items()}
        for update in find_updates((self.model.unet, self.model.clip_text_encoder)).attached:
            if (factor := factors.get(update.name, 1.0)) != 1:
                self._before.append((update, update.factor))
                update.factor *= factor

    def _end(self, module: nn.Module, *_: Any) -> None:
        if module is self.model:
            self.restore()


def _factor(name: str, value: object) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"the schedule of {name!r} must give numbers, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"the schedule of {name!r} must give finite numbers, got {value}")
    return float(value)
