"""Named bags of values that cross a tree of chains without being passed as arguments."""

from __future__ import annotations

from typing import Any

import torch

Context = dict[str, Any]
"""One bag of values."""

Contexts = dict[str, Context]
"""All bags, by name."""


class ContextProvider:
    """Give one node of a tree its contexts: what is declared at the node, else what the nearest node above declares.

    A provider on its own is a plain store. Providers linked by `attach` form a tree: a name is looked up from the node
    towards the root, the first provider that declares it wins, and the answer is remembered until a provider on the way
    changes. Nothing is copied and nothing is walked when a value is set, except into those few providers below that
    declare the same name themselves: they own separate values, and what is set above is copied into them (`push`).
    """

    __slots__ = ("_declaring", "_has_caches", "_nested", "_visible", "children", "last_seen", "own", "parent")

    def __init__(self) -> None:
        self.own: Contexts = {}
        self.last_seen: Contexts = {}  # copies of what was visible in the tree that the node has left
        self.parent: ContextProvider | None = None
        self.children: dict[ContextProvider, None] = {}  # a set that keeps its order
        # What is declared here and, as a cache, above: a read is one lookup in it. At a root the same dict as `own`.
        self._visible: Contexts = self.own
        self._declaring: tuple[ContextProvider, ...] | None = None  # cache: those below with names of their own
        self._nested: tuple[tuple[Context, Context], ...] | None = None  # cache: what `push` copies, and from where
        self._has_caches = False  # whether anything here or below was remembered of what is above

    @staticmethod
    def create(contexts: Contexts) -> ContextProvider:
        """Make a provider that declares the given contexts."""
        provider = ContextProvider()
        provider.update_contexts(contexts)
        return provider

    @property
    def contexts(self) -> Contexts:
        """Every context visible from here, by name. The inner dicts are the live ones."""
        if self.parent is None and not self.last_seen:
            return self.own
        above = {} if self.parent is None else self.parent.contexts
        return {**self.last_seen, **above, **self.own}

    def get_context(self, key: str) -> Any:
        """Return the live dict visible under a name, or `None`."""
        context = self._visible.get(key)
        if context is None:
            context = self._lookup(key)
        return self._last_seen(key) if context is None else context

    def set_context(self, key: str, value: Context) -> None:
        """Declare the dict `value` here under a name, in place of what was declared here before."""
        self.own[key] = self._visible[key] = value
        for child in self.children:
            child._forget()
        self._forget_below()

    def update_contexts(self, new_contexts: Contexts) -> None:
        """Copy items into the dicts visible from here; declare the dicts whose name is not visible."""
        for key, value in new_contexts.items():
            context = self.get_context(key)
            if context is None:
                self.set_context(key, value)
            else:
                context.update(value)

    def merge(self, key: str, value: Context) -> None:
        """Copy items into the context declared here, and push.

        A name that is not declared here yet becomes so, starting from the values visible until now: from then on this
        node and those below it have values of their own.
        """
        own = self.own.get(key)
        if own is None:
            self.set_context(key, {**(self.get_context(key) or {}), **value})
        else:
            own.update(value)
        self.push()

    def push(self) -> None:
        """Copy what is visible above each provider below into the contexts of the same names that it declares."""
        nested = self._nested
        if nested is None:
            nested = self._find_nested()
        for own, inherited in nested:
            own.update(inherited)

    def _find_nested(self) -> tuple[tuple[Context, Context], ...]:
        nested = tuple(
            (own, inherited)
            for provider in self.declaring_below()
            if provider.parent is not None
            for key, own in provider.own.items()
            if (inherited := provider.parent.get_context(key)) is not None
        )
        if not torch.compiler.is_compiling():  # a cache filled inside a traced call would invalidate its own guards
            self._nested = nested
            self._mark_caches()
        return nested

    def declaring_below(self) -> tuple[ContextProvider, ...]:
        """Return the providers below that declare a name of their own, top down."""
        if self._declaring is not None:
            return self._declaring
        found: list[ContextProvider] = []
        for child in self.children:
            if child.own:
                found.append(child)
            found.extend(child.declaring_below())
        declaring = tuple(found)
        if not torch.compiler.is_compiling():
            self._declaring = declaring
        return declaring

    def attach(self, parent: ContextProvider | None) -> None:
        """Make this provider a child of another one, or with `None` a root.

        What is visible at the new place is copied into the contexts declared here or below. What was visible at the old
        place, and is not at the new one, is kept as a copy: the old tree is never written to from here.
        """
        if parent is self.parent:
            return
        seen = {} if self.parent is None else self.parent.contexts
        if self.parent is not None:
            self.parent.children.pop(self, None)
            self.parent._forget_below()
        self._forget()
        self.parent = parent
        self._visible = self.own if parent is None else dict(self.own)
        if parent is not None:
            parent.children[self] = None
            parent._forget_below()
        if seen or self.last_seen:
            kept = {**self.last_seen, **{key: dict(value) for key, value in seen.items()}}
            self.last_seen = {key: value for key, value in kept.items() if self._lookup(key) is None}
        if parent is not None and (self.own or self.children):
            self._receive(parent)

    def _receive(self, parent: ContextProvider) -> None:
        for key, own in self.own.items():
            own.update(parent.get_context(key) or {})
        if self.declaring_below():
            self.push()

    def _lookup(self, key: str) -> Context | None:
        context = self._visible.get(key)
        if context is not None or self.parent is None:
            return context
        context = self.parent._lookup(key)
        if context is not None and not torch.compiler.is_compiling():
            self._visible[key] = context
            self._mark_caches()
        return context

    def _last_seen(self, key: str) -> Context | None:
        provider: ContextProvider | None = self
        while provider is not None:
            context = provider.last_seen.get(key)
            if context is not None:
                return context
            provider = provider.parent
        return None

    def _mark_caches(self) -> None:
        provider: ContextProvider | None = self
        while provider is not None and not provider._has_caches:
            provider._has_caches = True
            provider = provider.parent

    def _forget(self) -> None:
        """Drop what is remembered here and below of what is above. Trees that were never called cost nothing."""
        if self._has_caches:
            self._has_caches = False
            self._visible = self.own if self.parent is None else dict(self.own)
            self._nested = None
            for child in self.children:
                child._forget()

    def _forget_below(self) -> None:
        """Drop what is remembered here and above of what is below."""
        provider: ContextProvider | None = self
        while provider is not None and (provider._declaring is not None or provider._nested is not None):
            provider._declaring = provider._nested = None
            provider = provider.parent

    def __getstate__(self) -> dict[str, Contexts]:
        return {"own": self.own, "last_seen": self.last_seen}  # the chains restore the links

    def __setstate__(self, state: dict[str, Contexts]) -> None:
        self.__init__()
        self.own, self.last_seen = state["own"], state["last_seen"]
        self._visible = self.own

    def __repr__(self) -> str:
        contexts = {
            name: {key: _describe(value) for key, value in context.items()} for name, context in self.contexts.items()
        }
        return f"{type(self).__name__}(contexts={contexts})"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"Tensor(shape={tuple(value.shape)}, dtype={value.dtype}, device={value.device})"
    return repr(value)
