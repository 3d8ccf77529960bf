"""Multipliers of LoRAs that change from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeAlias

from torch import nn

from refiners.fluxion.adapters.lora import LayerUpdate
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

Schedule: TypeAlias = Callable[[float], float]
"""Gives a multiplier for how far the generation is, from 0 (the first step from noise) to 1 (the last)."""


class LoraSchedules:
    """Multiply updates by a number for each step of a model while it takes the step.

    Args:
        model: The model.
        updates: Gives the updates that are in its tree.
    """

    def __init__(self, model: LatentDiffusionModel, updates: Callable[[], Iterable[LayerUpdate]]) -> None:
        self.model = model
        self.updates = updates
        self.by_name: dict[str, Schedule] = {}
        self._hooks: list[Any] = []
        self._before: list[tuple[LayerUpdate, float]] = []

    def set(self, name: str, schedule: Schedule | None) -> None:
        """Give the updates of a name a schedule, or none.

        Raises:
            TypeError: If it cannot be called.
        """
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of a number, or None, got {type(schedule).__name__}")
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

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = kwargs.get("step", args[1] if len(args) > 1 else None)
        if module is not self.model or not isinstance(step, int):
            return  # a copy of the model, or a call that the model refuses
        progress = step / max(1, self.model.solver.num_inference_steps - 1)
        factors = {name: _factor(name, schedule(progress)) for name, schedule in self.by_name.items()}
        for update in self.updates():
            if (factor := factors.get(update.name, 1.0)) != 1:
                self._before.append((update, update.factor))
                update.factor *= factor

    def _end(self, module: nn.Module, *_: Any) -> None:
        if module is self.model:
            while self._before:
                update, factor = self._before.pop()
                update.factor = factor


def _factor(name: str, value: object) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"the schedule of {name!r} must give numbers, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"the schedule of {name!r} must give finite numbers, got {value}")
    return float(value)
