"""The chain: an ordered node of a tree that calls its children one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

from torch import device as Device, dtype as DType, nn

from refiners.fluxion.context import Context, ContextProvider, Contexts
from refiners.fluxion.layers.chain.errors import ReturnException, chain_error, error_tree, is_a_stop, pretty_print_args
from refiners.fluxion.layers.chain.joints import JOINTS, Addition, join
from refiners.fluxion.layers.chain.keys import appended, generate_unique_names, popped
from refiners.fluxion.layers.chain.search import Searchable, T
from refiners.fluxion.layers.module import ContextModule, Module, WeightedModule, structural_copy
from refiners.fluxion.layers.shared import share
from refiners.ops.portable_path import take_interruption

if TYPE_CHECKING:
    from typing_extensions import Self


_NOTHING: Any = object()


class Chain(Searchable):
    """Call the children in order, each with the result of the one before; a tuple is passed on as several arguments.

    The tree is edited with `insert`, `append`, `pop`, `remove` and `replace`; `walk`, `layers` and `find` look into it.

    Args:
        args: The children, or one iterable of them.

    Raises:
        TypeError: If a child is not a module.
        AssertionError: If a child is already in another chain.
    """

    _tag = "CHAIN"
    _provider: ContextProvider
    _declares_contexts: ClassVar[bool] = False  # whether `init_context` is overridden: only then is there a reset

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._declares_contexts = cls.init_context is not Chain.init_context

    def __init__(self, *args: Module | Iterable[Module]) -> None:
        single = len(args) == 1 and isinstance(args[0], Iterable) and not isinstance(args[0], Chain)
        modules = tuple(cast("Iterable[Module]", args[0] if single else args))
        self._check_children(modules)
        if "_modules" in self.__dict__:  # called again: the former children make way for the new ones
            former = tuple(self._modules.values())
        else:
            former = ()
            super().__init__()
            # Set in `__dict__`, like the keys: torch looks at each assignment several times before it is a plain one.
            self.__dict__["_provider"] = ContextProvider()
        if self._declares_contexts:
            self._reset_context()
        self.__dict__["_modules"] = generate_unique_names(modules)
        for module in former:
            self._release(module)
        for module in modules:
            if isinstance(module, ContextModule):
                module._adopt(self)

    def _check_children(self, modules: tuple[Module, ...]) -> None:
        for index, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{type(self).__name__}: child {index} must be a module, got {type(module).__name__}")
            if not isinstance(module, ContextModule) or not module._can_refresh_parent:
                continue
            if module.parent is not None and module.parent is not self:
                raise AssertionError(
                    f"{type(module).__name__} already has parent {type(module.parent).__name__}: remove it from there"
                    " first, or place a structural_copy() of it"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            raise ValueError(
                f"cannot set the module {type(value).__name__} as attribute {name!r} of {type(self).__name__}: edit the"
                " tree with append, insert or replace, or hold a module that is no child in a one-element list"
            )
        super().__setattr__(name, value)

    # --- contexts -----------------------------------------------------------------------------------------------------

    @property
    def provider(self) -> ContextProvider:
        """The contexts declared by this chain, and those visible from above."""
        return self._provider

    def use_context(self, context_name: str) -> Context:
        """Return the live dict that this chain sees under a name; raises `AssertionError` if there is none."""
        context = self._provider.get_context(context_name)
        if context is None:
            raise AssertionError(f"Context {context_name} not found.")
        return context

    def init_context(self) -> Contexts:
        """Return the contexts that this kind of chain declares, with fresh default values. To be overridden.

        The defaults come back at the end of each call of the chain, successful or not.
        """
        return {}

    def set_context(self, context: str, value: Any) -> None:
        """Copy the items of the dict `value` into the context of that name, declaring it here if it is not yet."""
        self._provider.merge(context, value)

    def _reset_context(self) -> None:
        for name, context in self.init_context().items():
            self._provider.merge(name, context)

    def _adopt(self, parent: Chain | None) -> None:
        super()._adopt(parent)
        # Without a provider this chain is being restored, by a child that refers back to it: it will link itself.
        if self._can_refresh_parent and "_provider" in self.__dict__:
            self._provider.attach(None if parent is None else parent._provider)

    # --- calls --------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any) -> Any:
        return self._call_layers(args)

    def _call_layers(self, args: tuple[Any, ...], addition: Addition | None = None) -> Any:
        """Call the children one after the other; the last one may make an addition to the result itself."""
        result: Any = None
        name, layers, joined = "", self._modules, _NOTHING
        try:
            # Editing a chain replaces its table of children: this loop goes on over those it began with.
            for name, layer in layers.items():
                if layer is joined:  # with the one before
                    joined = _NOTHING
                    continue
                if type(layer) in JOINTS and len(args) == 1:
                    following = _after(name, layers, addition)
                    result = join(layer, following, args[0])
                    if result is not None:
                        args, joined = (result,), following
                        continue
                result = layer(*args)
                args = result if isinstance(result, tuple) else (result,)  # pyright: ignore[reportUnknownVariableType]
        except ReturnException as early:
            result = early.value
        except Exception as error:
            self._raise(error, name, args)
        finally:
            if self._declares_contexts:
                self._reset_context()
            if self._provider._nested != ():
                self._provider.push()  # contexts declared below were reset by their own chains
        return result  # pyright: ignore[reportUnknownVariableType]

    def _call_layer(self, layer: Module, name: str, /, *args: Any) -> Any:
        try:
            return layer(*args)
        except ReturnException:
            raise
        except Exception as error:
            self._raise(error, name, args)

    def _raise(self, error: Exception, name: str, args: tuple[Any, ...]) -> None:
        if interruption := take_interruption(error):
            raise interruption from error
        if is_a_stop(error):
            raise error
        wrapped, original = chain_error(error, self, name, args)
        raise wrapped from original

    def _hint(self, *args: Any) -> str:
        """Say what may be the cause when a child fails that was called with `args`. To be overridden."""
        return ""

    def _show_error_in_tree(self, name: str, /, max_lines: int = 20) -> str:
        return error_tree(self, name, max_lines)

    @staticmethod
    def _pretty_print_args(*args: Any) -> str:
        return pretty_print_args(*args)

    # --- access -------------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: slice) -> Self: ...

    @overload
    def __getitem__(self, key: int | str) -> Module: ...

    def __getitem__(self, key: int | str | slice) -> Module | Self:
        if isinstance(key, str):
            return self._modules[key]
        if isinstance(key, slice):
            copy = self.structural_copy()
            kept = tuple(copy)[key]
            for module in copy:
                if not any(module is other for other in kept):
                    copy._release(module, keep=False)
            copy._modules = generate_unique_names(kept)
            return copy
        return tuple(self._modules.values())[key]

    def __len__(self) -> int:
        return len(self._modules)

    def layer(self, key: str | int | Sequence[str | int], layer_type: type[T] = Module) -> T:
        """Return the layer under a key, an index, or a path of them; the empty path leads to the chain itself.

        Raises:
            AssertionError: If the layer is no `layer_type`, or a layer on the way no chain.
            KeyError: If there is no such key; IndexError, if no such index.
        """
        if isinstance(key, (str, int)):
            found: Module = self[key]
            label = f"layer {key}"
        elif len(key) == 0:
            found, label = self, "layer"
        elif len(key) == 1:
            return self.layer(key[0], layer_type)
        else:
            return self.layer(key[0], Chain).layer(key[1:], layer_type)
        if not isinstance(found, layer_type):
            raise AssertionError(f"{label} is {type(found)}, not {layer_type}")
        return found

    @property
    def device(self) -> Device | None:
        """The device of the first weighted layer, if there is one."""
        layer = self.find(WeightedModule)
        return None if layer is None else layer.device

    @property
    def dtype(self) -> DType | None:
        """The dtype of the first weighted layer, if there is one."""
        layer = self.find(WeightedModule)
        return None if layer is None else layer.dtype

    # --- edits --------------------------------------------------------------------------------------------------------

    def insert(self, index: int, module: Module) -> None:
        """Insert a module so that it ends up at `index`, counted from the end if negative; clamped to the ends.

        Raises:
            TypeError: If it is no module.
            ValueError: If it is a chain that contains this one.
        """
        self._check_newcomer(module)
        modules = list(self)
        modules.insert(max(0, len(modules) + index + 1) if index < 0 else index, module)
        self.__dict__["_modules"] = generate_unique_names(modules)
        if isinstance(module, ContextModule):
            module._adopt(self)

    def insert_before_type(self, module_type: type[Module], new_module: Module) -> None:
        """Insert a module before the first child of a type; raise `ValueError` if there is none."""
        self.insert(self._index_of_type(module_type), new_module)

    def insert_after_type(self, module_type: type[Module], new_module: Module) -> None:
        """Insert a module after the first child of a type; raise `ValueError` if there is none."""
        self.insert(self._index_of_type(module_type) + 1, new_module)

    def append(self, module: Module) -> None:
        """Add a module at the end; raises as `insert`."""
        self._check_newcomer(module)
        self.__dict__["_modules"] = appended(self._modules, module)
        if isinstance(module, ContextModule):
            module._adopt(self)

    def pop(self, index: int = -1) -> Module:
        """Remove and return the module at an index; raise `IndexError` if it is out of range."""
        if not -len(self) <= index < len(self):
            raise IndexError("Index out of range.")
        module = self[index]
        self.__dict__["_modules"] = popped(self._modules, index)
        self._release(module)
        return module

    def remove(self, module: Module) -> None:
        """Remove a module (its first place, if it has several); raise `ValueError` if it is no child."""
        self.pop(self._index_of(module))

    def replace(self, old_module: Module, new_module: Module, old_module_parent: Chain | None = None) -> None:
        """Put a module in the place of another.

        Args:
            old_module: The child to replace.
            new_module: What takes its place.
            old_module_parent: The chain, already holding `old_module`, that becomes its parent.

        Raises:
            ValueError: If `old_module` is no child, or `new_module` a chain that contains this one.
            TypeError: If `new_module` is no module.
            AssertionError: If `old_module_parent` does not hold `old_module`. In any case nothing has changed.
        """
        modules = list(self)
        modules[self._index_of(old_module)] = new_module
        self._check_newcomer(new_module)
        if old_module_parent is not None and old_module not in old_module_parent:
            raise AssertionError(f"{old_module} not in {old_module_parent}")
        self.__dict__["_modules"] = generate_unique_names(modules)
        if isinstance(new_module, ContextModule):
            new_module._adopt(self)
        if old_module_parent is None:
            self._release(old_module)
        elif isinstance(old_module, ContextModule):
            old_module._adopt(old_module_parent)

    def _check_newcomer(self, module: Module) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"{type(self).__name__}: expected a module, got {type(module).__name__}")
        if isinstance(module, Chain) and (module is self or module in self.get_parents()):
            raise ValueError(f"{type(module).__name__} cannot be placed in {type(self).__name__}: it contains it")

    def _index_of(self, module: Module) -> int:
        for index, child in enumerate(self):
            if child is module:
                return index
        raise ValueError(f"{module} is not in {self}")

    def _index_of_type(self, module_type: type[Module]) -> int:
        for index, child in enumerate(self):
            if isinstance(child, module_type):
                return index
        raise ValueError(f"No module of type {module_type.__name__} found in the chain.")

    def _release(self, module: Module, keep: bool = True) -> None:
        """Orphan a module that has left this chain, unless it is still here at another place."""
        if isinstance(module, ContextModule) and module.parent is self and not (keep and module in self):
            module._adopt(None)

    # --- copies -------------------------------------------------------------------------------------------------------

    def _copy_structure(self) -> Self:
        getattr(self, "_pre_structural_copy", _nothing)()
        children = [structural_copy(child) for child in self]
        clone = super()._copy_structure()
        clone._provider = ContextProvider.create(clone.init_context())
        clone._modules = generate_unique_names(children)
        for child in children:
            if isinstance(child, ContextModule):
                child._adopt(clone)
        share((child for child in children if not isinstance(child, ContextModule)), self, clone)
        getattr(clone, "_post_structural_copy", _nothing)(self)
        return clone

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for child in self:
            if isinstance(child, ContextModule):
                child._adopt(self)
        self._relink()

    def _relink(self) -> None:
        """Link the contexts of children, and of a parent, that were restored before this chain."""
        if self._parent:
            self._provider.attach(self._parent[0]._provider)

    def _show_only_tag(self) -> bool:
        return type(self) is Chain


def _after(name: str, layers: Mapping[str, Any], last: Any) -> Any:
    """Give the layer after the one of a name, or what comes after the last one."""
    names = iter(layers)
    while next(names) != name:
        pass
    following = next(names, None)
    return last if following is None else layers[following]


def _nothing(*_: Any) -> None: ...
