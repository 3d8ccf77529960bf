"""The base class of adapters."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from torch import nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import generate_unique_names

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T", bound=fl.Module)


class Adapter(Generic[T]):
    """Give a chain the ability to take the place of a module, its target, in a tree, and to give it back.

    Subclasses also derive from `Chain`, or one of its subclasses, and call its constructor within `setup_adapter`:

        class Doubled(fl.Sum, fl.Adapter[fl.Linear]):
            def __init__(self, target: fl.Linear) -> None:
                with self.setup_adapter(target):
                    super().__init__(target, target)

    Adapters of one target nest: the one injected last is the innermost. They may be ejected in any order.
    """

    # Whether models are built with such adapters: their places are then those that weights are named after.
    is_built_in: ClassVar[bool] = False

    # Held in a list so that torch does not register the target as a child.
    _target: list[T]
    _is_injected: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, fl.Chain):
            raise AssertionError(f"Adapter {cls.__name__} must be a Chain")

    @property
    def target(self) -> T:
        """The module whose place the adapter takes."""
        return self._target[0]

    @contextmanager
    def setup_adapter(self, target: T) -> Generator[None, None, None]:
        """Let the constructor of the chain, called within, place the target although it has another parent.

        Raises:
            TypeError: If the target is not a module.
            AssertionError: If the chain already has children.
        """
        if not isinstance(target, nn.Module):
            raise TypeError(f"{type(self).__name__}: target must be a module, got {type(target).__name__}")
        if self.__dict__.get("_modules"):
            raise AssertionError("Call the Chain constructor in the setup_adapter context.")
        self.__dict__["_target"] = [target]  # past torch's bookkeeping, like `_is_injected`: sets have a thousand
        if isinstance(target, fl.ContextModule):
            with target.no_parent_refresh():
                yield
        else:
            yield

    def inject(self, parent: fl.Chain | None = None) -> Self:
        """Take the place of the target.

        Args:
            parent: A chain that holds the target, at any depth. Needed for a target that is no context module: such a
                leaf does not know where it is.

        Returns:
            The adapter itself.

        Raises:
            RuntimeError: If the adapter is already injected, or if a leaf is to be adapted without a parent.
            AssertionError: If the target is not below `parent`. In either case nothing has changed.
        """
        adapter, target = _as_chain(self), self.target
        place = adapter.find_parent(target)
        if self._is_injected or adapter.parent is not None:
            raise RuntimeError(f"{type(self).__name__} is already injected: eject it first")
        if parent is None and isinstance(target, fl.ContextModule):
            parent = target.parent
        if parent is not None:
            parent.ensure_find_parent(target).replace(target, adapter, old_module_parent=place)
        elif isinstance(target, fl.ContextModule):  # the root of a tree
            target._adopt(place)
        else:
            raise RuntimeError(
                f"{type(self).__name__}: the target {type(target).__name__} does not know its parent: call"
                " inject(parent) with a chain that holds it"
            )
        self.__dict__["_is_injected"] = True
        return self

    def eject(self) -> None:
        """Give the place back to the target, or to the adapters that were injected below this one since.

        The adapter keeps its children and can be injected again.

        Raises:
            RuntimeError: If the adapter is not injected; nothing has changed.
        """
        adapter, target = _as_chain(self), self.target
        above = adapter.get_parents()
        if not above and not self._is_injected:
            raise RuntimeError(f"{type(self).__name__} is not injected: inject it first")
        restored = lookup_top_adapter(adapter, target)
        if restored is not target:
            self._take_out(restored, target)
        if above:
            above[0].replace(adapter, restored)
        elif isinstance(restored, fl.ContextModule) and adapter in restored.get_parents():
            restored._adopt(None)
        self._is_injected = False
        for chain in above:
            if isinstance(chain, Adapter) and chain.target is adapter:
                chain._target = [restored]  # what it gives its place back to, now that this adapter is gone

    def _take_out(self, nested: fl.Module, target: fl.Module) -> None:
        """Put the target alone where the adapters nested in this one stood, so that it can be injected again."""
        chain = _as_chain(nested).ensure_parent
        chain._modules = generate_unique_names([target if child is nested else child for child in chain])

    def _pre_structural_copy(self) -> None:
        if isinstance(self.target, fl.Chain):
            raise RuntimeError(f"Chain adapters ({self}) typically cannot be copied, eject them first.")

    def _post_structural_copy(self, source: Adapter[T]) -> None:
        self._target = [source.target]


def lookup_top_adapter(top: fl.Chain, target: fl.Module) -> fl.Module:
    """Return the outermost adapter around the target below a chain, or the target itself if there is none.

    Args:
        top: The chain to look below; it does not count itself.
        target: The module.

    Raises:
        AssertionError: If the parents of the target do not lead to `top`.
    """
    target_parent = top.find_parent(target)
    if target_parent is None or target_parent is top:
        return target
    found: fl.Module = target
    current: fl.Chain = target_parent
    while current is not top:
        if isinstance(current, Adapter):
            found = current
        if current.parent is None:
            raise AssertionError(f"parent tree of {top} is broken")
        current = current.parent
    return found


def _as_chain(adapter: Any) -> fl.Chain:
    return cast(fl.Chain, adapter)  # `__init_subclass__` has made sure
