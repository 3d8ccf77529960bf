"""How the modules below a chain are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_origin, overload

from refiners.fluxion.layers.module import ContextModule, Module

if TYPE_CHECKING:
    from refiners.fluxion.layers.chain.chain import Chain

T = TypeVar("T", bound=Module)


class Searchable(ContextModule):
    """A node whose children can be searched: the base of `Chain`, the only such node there is."""

    _modules: dict[str, Module]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __contains__(self, module: object) -> bool:
        for child in self._modules.values():  # noqa: SIM110 (a generator would double the time)
            if child is module:
                return True
        return False

    @overload
    def walk(self, predicate: type[T], recurse: bool = False) -> Iterator[tuple[T, Chain]]: ...

    @overload
    def walk(
        self, predicate: Callable[[Module, Chain], bool] | None = None, recurse: bool = False
    ) -> Iterator[tuple[Module, Chain]]: ...

    def walk(
        self, predicate: type[T] | Callable[[Module, Chain], bool] | None = None, recurse: bool = False
    ) -> Iterator[tuple[T, Chain]] | Iterator[tuple[Module, Chain]]:
        """Yield `(module, parent)` for the modules below that match, each chain before what it holds.

        Args:
            predicate: A class, a function of the module and its parent, or `None` for all. A function that raises
                `StopIteration` hides the module and everything below it.
            recurse: Whether to look into matches too.

        Raises:
            ValueError: If the predicate is a subscripted generic such as `Adapter[Linear]`.
        """
        if get_origin(predicate) is not None:
            raise ValueError(f"subscripted generics cannot be used as predicates, got {predicate}")
        return self._walk(predicate, recurse)

    def _walk(self, predicate: Any, recurse: bool) -> Iterator[Any]:
        by_type = isinstance(predicate, type)
        stack = [(cast("Chain", self), iter(self))]
        while stack:
            parent, children = stack[-1]
            for module in children:
                try:
                    if by_type:
                        matches = isinstance(module, predicate)
                    else:
                        matches = predicate is None or predicate(module, parent)
                except StopIteration:
                    continue
                if matches:
                    yield module, parent
                if isinstance(module, Searchable) and (recurse or not matches):
                    stack.append((cast("Chain", module), iter(module)))
                    break
            else:
                stack.pop()

    def layers(self, layer_type: type[T], recurse: bool = False) -> Iterator[T]:
        """Yield the layers of a type, in the order of `walk`."""
        for module, _ in self.walk(layer_type, recurse):
            yield module

    def find(self, layer_type: type[T]) -> T | None:
        """Return the first layer of a type, if there is one."""
        return next(self.layers(layer_type), None)

    def ensure_find(self, layer_type: type[T]) -> T:
        """Return the first layer of a type; raise `AssertionError` if there is none."""
        layer = self.find(layer_type)
        if layer is None:
            raise AssertionError(f"could not find {layer_type} in {self}")
        return layer

    def find_parent(self, module: Module) -> Chain | None:
        """Return the chain, this one or one below, that holds the module."""
        if module in self:
            return cast("Chain", self)
        return next((parent for child, parent in self._walk(None, recurse=True) if child is module), None)

    def ensure_find_parent(self, module: Module) -> Chain:
        """Return the chain that holds the module; raise `AssertionError` if there is none."""
        parent = self.find_parent(module)
        if parent is None:
            raise AssertionError(f"could not find {module} in {self}")
        return parent
