"""Leaves made of a function, and leaves that steer or stop a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from refiners.fluxion.layers.chain.errors import ReturnException
from refiners.fluxion.layers.module import ContextModule, Module


class Lambda(Module):
    """Call a function.

    Args:
        func: Any callable. A bound method of a chain is bound to the copy in a structural copy of that chain.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        super().__init__()
        self.func = func

    def forward(self, *args: Any) -> Any:
        return self.func(*args)

    def __str__(self) -> str:
        name = getattr(self.func, "__name__", "partial_function")
        return f"{type(self).__name__}({name}{_signature(self.func)})"


def _signature(func: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(func, eval_str=True))
    except Exception:  # an annotation that names what is imported for the type checker only
        pass
    try:
        return str(inspect.signature(func))
    except (TypeError, ValueError):  # functions written in C may have none
        return "(...)"


class Return(Module):
    """End the call of the chain around this layer: its argument becomes the result of that chain.

    Raises:
        ReturnException: When called; the chain around it catches it.
    """

    def forward(self, x: Any) -> Any:
        raise ReturnException(x)


class Breakpoint(ContextModule):
    """Open the debugger, and return the argument (or the tuple of arguments).

    Args:
        vscode: Whether to use debugpy rather than the built-in `breakpoint()`.
    """

    def __init__(self, vscode: bool = True) -> None:
        super().__init__()
        self.vscode = vscode

    def forward(self, *args: Any) -> Any:
        if self.vscode:
            import_module("debugpy").breakpoint()
        else:
            breakpoint()
        return args[0] if len(args) == 1 else args
