"""The leaves that read and write contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refiners.fluxion.layers.module import ContextModule

if TYPE_CHECKING:
    from typing_extensions import Self


def _identity(x: Any) -> Any:
    return x


class UseContext(ContextModule):
    """Return an entry of a context, whatever the arguments.

    Args:
        context: The name of the context.
        key: The entry.

    Raises:
        AssertionError: When called, if the context or the entry is not set. If a chain above has a method
            `set_<key>`, the message names it.
    """

    def __init__(self, context: str, key: str) -> None:
        super().__init__()
        self.context = context
        self.key = key
        self.func: Callable[[Any], Any] = _identity

    def forward(self, *_: Any) -> Any:
        # As `use_context`, without its calls: there are hundreds of these in a step.
        parent = self._parent
        context = parent[0]._provider._visible.get(self.context) if parent else None
        if context is None:
            context = self.ensure_parent.provider.get_context(self.context)
        if context is None:
            raise self._error(f"Context {self.context} not found.")
        if not context:
            raise self._error(f"context {self.context} is unset")
        value = context.get(self.key)
        if value is None:
            raise self._error(f"context entry {self.context}.{self.key} is unset")
        return self.func(value)

    def _error(self, problem: str) -> AssertionError:
        setter = f"set_{self.key}"
        above = next((chain for chain in self.get_parents() if callable(getattr(type(chain), setter, None))), None)
        if above is not None:
            problem = f"{problem.rstrip('.')}. Call {type(above).__name__}.{setter} first."
        return AssertionError(problem)

    def compose(self, func: Callable[[Any], Any]) -> Self:
        """Return `func(entry)` instead of the entry. A second call replaces the function."""
        self.func = func
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}(context={self.context!r}, key={self.key!r})"


class SetContext(ContextModule):
    """Store the argument as an entry of a context, and return it.

    Args:
        context: The name of the context, declared by a chain above. Nothing happens while it is empty.
        key: The entry.
        callback: Called with the entry and the argument instead of storing the argument, to append to a list for
            example; the entry must exist.

    Raises:
        AssertionError: When called, if no chain above declares the context.
        KeyError: When called, if there is a callback and no such entry.
    """

    def __init__(self, context: str, key: str, callback: Callable[[Any, Any], Any] | None = None) -> None:
        super().__init__()
        self.context = context
        self.key = key
        self.callback = callback

    def forward(self, x: Any) -> Any:
        context = self.use_context(self.context)
        if not context:
            return x
        if self.callback is None:
            context[self.key] = x
        else:
            self.callback(context[self.key], x)
        return x

    def __repr__(self) -> str:
        return f"{type(self).__name__}(context={self.context!r}, key={self.key!r})"
