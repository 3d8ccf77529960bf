"""The portable paths of operators: for devices without kernels, and for kernels that leave a case to torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from refiners.ops.library import LIBRARY

Function = TypeVar("Function", bound=Callable[..., Any])

_lost: list[BaseException] = []


def register_portable(name: str) -> Callable[[Function], Function]:
    """Register a function as what an operator does without a kernel, and as what its kernels call: `_NAME_portable`."""

    def register(function: Function) -> Function:
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # any device without a kernel of its own
        LIBRARY.impl(f"_{name}_portable", _remembering(function), "CompositeExplicitAutograd")
        return function

    return register


def _remembering(function: Function) -> Function:
    """Remember an interruption: on its way through native code it becomes a `RuntimeError`."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _lost.clear()  # of one that was not asked for
        try:
            return function(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as interruption:
            _lost[:] = [interruption]
            raise

    return call  # pyright: ignore[reportReturnType]


def take_interruption(error: Exception) -> BaseException | None:
    """Give the `KeyboardInterrupt` or `SystemExit` that has become this error, if one has; see `register_portable`."""
    lost = _lost.pop() if _lost else None
    return lost if isinstance(error, RuntimeError) and "API call failed" in str(error) else None
