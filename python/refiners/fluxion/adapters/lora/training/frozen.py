"""Parameters that are not trained while updates are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn


@dataclass
class _Hold:
    requires_grad: bool  # before anybody froze it
    count: int = 0


# By the module and the name of the parameter: a cast or a load may put another parameter in its place.
_holds: WeakKeyDictionary[nn.Module, dict[str, _Hold]] = WeakKeyDictionary()


class Frozen:
    """Take the parameters of modules out of training, until the last one who asked for it releases them.

    Args:
        root: The parameters of this module are meant, and of all below it.
        but: Parameters of these are left as they are.
    """

    def __init__(self, root: nn.Module, but: Iterable[nn.Module] = ()) -> None:
        spared = {id(module) for each in but for module in each.modules()}
        found = [
            (module, name, parameter.requires_grad)
            for module in root.modules()
            if id(module) not in spared
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._before: list[tuple[nn.Module, str, bool]] = []
        for module, name, requires_grad in found:
            hold = _holds.setdefault(module, {}).setdefault(name, _Hold(requires_grad))
            hold.count += 1
            self._before.append((module, name, hold.requires_grad))
            _set(module, name, False)

    def release(self) -> None:
        """Give back what `requires_grad` was, wherever nobody else holds the parameter."""
        for module, name, requires_grad in self._before:
            holds = _holds.get(module, {})
            if name in holds:  # a copy of the module has none
                holds[name].count -= 1
                if holds[name].count > 0:
                    continue
                del holds[name]
            _set(module, name, requires_grad)
        self._before.clear()


def _set(module: nn.Module, name: str, requires_grad: bool) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None and parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)
