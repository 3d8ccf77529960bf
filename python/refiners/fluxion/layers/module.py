"""The base classes of every layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, device as Device, dtype as DType, nn
from torch.nn.modules import module as _torch_module

from refiners.fluxion.context import Context, ContextProvider
from refiners.fluxion.layers.loading import load_safetensors_into
from refiners.fluxion.layers.tree import ModuleTree, TreeNode

if TYPE_CHECKING:
    from typing_extensions import Self

    from refiners.fluxion.layers.chain import Chain

__all__ = ["BasicType", "ContextModule", "Module", "ModuleTree", "TreeNode", "WeightedModule", "structural_copy"]

T = TypeVar("T", bound="Module | nn.Module")

BasicType = str | float | int | bool


class Module(nn.Module):
    """A `torch.nn.Module` that describes itself by the arguments it was built with."""

    _tag: str = ""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # children and parameters are reached by name

    def __init__(self) -> None:
        state = self.__dict__  # what `torch.nn.Module.__init__` sets, in a quarter of its time
        state.update(_CONSTANTS)
        for name, make in _CONTAINERS:
            state[name] = make()

    def __setattr__(self, name: str, value: Any) -> None:
        # torch looks for parameters, modules and buffers several times each: two plain cases need it once.
        kind = cast("type[object]", type(value))
        if kind in _NEVER_REGISTERED or kind is nn.Parameter:
            state = self.__dict__
            parameters = state.get("_parameters")
            if parameters is None or not (name in parameters or name in state["_buffers"] or name in state["_modules"]):
                if kind is not nn.Parameter:
                    object.__setattr__(self, name, value)
                    return
                if parameters is not None and _is_plain_parameter(self, name, value):
                    parameters[name] = value
                    return
        super().__setattr__(name, value)

    def load_from_safetensors(
        self, tensors_path: str | Path, strict: bool = True, device: Device | str | None = None
    ) -> Self:
        """Load the state dict from a file, straight into place.

        Parameters on the meta device are created from the file, in the dtype they were declared with; others are
        written to where they are.

        Args:
            tensors_path: A safetensors file.
            strict: Whether the names must match exactly. Shapes must match in any case.
            device: Where parameters that are on the meta device are created (default: cpu).

        Returns:
            The module itself.

        Raises:
            RuntimeError: If names or shapes do not match; it lists them, and nothing was loaded.
        """
        load_safetensors_into(self, Path(tensors_path), strict=strict, device=device)
        return self

    def to(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        device: Device | str | int | DType | Tensor | None = None,
        dtype: DType | None = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> Self:
        """Move the parameters and buffers, and cast those that are floating point or complex.

        Args:
            device: The device; as in torch, a dtype or a tensor to imitate may stand in its place.
            dtype: The dtype.
            non_blocking: Whether copies from pinned memory may be asynchronous.
            memory_format: The memory format of 4-D parameters, `torch.channels_last` for example.

        Returns:
            The module itself.

        Raises:
            TypeError: If two dtypes are given.
        """
        if isinstance(device, torch.dtype):
            if dtype is not None:
                raise TypeError(f"two dtypes given: {device} and {dtype}")
            device, dtype = None, device
        elif isinstance(device, Tensor):
            device, dtype = device.device, dtype or device.dtype
        options: dict[str, Any] = {"memory_format": memory_format} if memory_format is not None else {}
        if device is None and dtype is None and not options:
            return self
        return super().to(device=device, dtype=dtype, non_blocking=non_blocking, **options)

    def __str__(self) -> str:
        attributes = self.basic_attributes(init_attrs_only=True)
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in attributes.items())})"

    def __repr__(self) -> str:
        return repr(ModuleTree(self))

    def pretty_print(self, depth: int = -1) -> None:
        """Print the tree below this module, `depth` levels of it, or all of it if negative."""
        print(ModuleTree(self).draw(depth))

    def basic_attributes(self, init_attrs_only: bool = False) -> dict[str, BasicType | Sequence[BasicType]]:
        """Return the public attributes that are plain values, or sequences of plain values.

        Args:
            init_attrs_only: Whether to keep only the arguments of the constructor that differ from their default.
        """
        attributes = {
            key: value for key, value in self.__dict__.items() if not key.startswith("_") and _is_basic(value)
        }
        if not init_attrs_only:
            return attributes
        defaults = _init_defaults(type(self))
        return {key: value for key, value in attributes.items() if key in defaults and value != defaults[key]}

    def get_path(self, parent: Chain | None = None, top: Module | None = None) -> str:
        """Return where the module is, as a dotted path that begins at the class name of the root (or of `top`).

        Args:
            parent: The chain that holds the module (default: the one that it knows, if it knows one).
            top: Where the path begins.

        Raises:
            ValueError: If `parent` does not hold the module.
        """
        if parent is None or self is top:
            return type(self).__name__
        for name, module in parent._modules.items():
            if module is self:
                return f"{parent.get_path(parent.parent, top)}.{name}"
        raise ValueError(f"{self} not found in {parent}")

    def _show_only_tag(self) -> bool:
        return False


# The empty state of a module, as this version of torch has it: what all share, and what each has for itself.
_BLANK = dict(vars(nn.Module()))
_CONSTANTS = {name: value for name, value in _BLANK.items() if value is None or isinstance(value, bool)}
_CONTAINERS: list[tuple[str, Callable[[], Any]]] = [
    (name, type(value)) for name, value in _BLANK.items() if name not in _CONSTANTS
]

_NEVER_REGISTERED = frozenset((bool, int, float, str, tuple, torch.dtype))


def _is_plain_parameter(module: nn.Module, name: str, value: nn.Parameter) -> bool:
    """Whether all that torch does to register a parameter of a new name is to write it down."""
    return (
        name not in module.__dict__
        and "." not in name
        and not hasattr(type(module), name)
        and value.grad_fn is None
        and not _torch_module._global_parameter_registration_hooks
    )


@cache
def _init_defaults(cls: type[Module]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(cls.__init__).parameters.items()}


def _is_basic(value: Any) -> bool:
    if isinstance(value, (str, float, int)):  # bool is an int
        return True
    return isinstance(value, Sequence) and all(
        isinstance(item, (str, float, int)) for item in cast("Sequence[object]", value)
    )


class ContextModule(Module):
    """A module that knows the chain it is in."""

    # Held in a list so that torch does not register the parent as a child.
    _parent: list[Chain]
    _can_refresh_parent: bool = True  # see `no_parent_refresh`

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_parent"] = []

    @property
    def parent(self) -> Chain | None:
        """The chain that holds this module, if any."""
        return self._parent[0] if self._parent else None

    @property
    def ensure_parent(self) -> Chain:
        """The chain that holds this module; raises `AssertionError` if there is none."""
        if not self._parent:
            raise AssertionError("module does not have a parent")
        return self._parent[0]

    def get_parents(self) -> list[Chain]:
        """Return the parent, its parent, and so on up to the root."""
        parents: list[Chain] = []
        above = self._parent
        while above:
            parents.append(above[0])
            above = above[0]._parent
        return parents

    def _set_parent(self, parent: Chain | None) -> None:
        if not self._can_refresh_parent:
            return
        if parent is not None and self not in parent:
            raise AssertionError(f"{self} not in {parent}")
        self._adopt(parent)

    def _adopt(self, parent: Chain | None) -> None:
        """Set the parent without looking whether it holds this module: the caller has just made it so."""
        if self._can_refresh_parent:
            self.__dict__["_parent"] = [] if parent is None else [parent]

    @property
    def provider(self) -> ContextProvider:
        """The contexts that this module reads and writes: those of its parent."""
        return self.ensure_parent.provider

    def use_context(self, context_name: str) -> Context:
        """Return the live dict visible under a name; raises `AssertionError` if there is none."""
        parent = self._parent
        provider = parent[0]._provider if parent else self.provider
        context = provider._visible.get(context_name)  # read in every call: the first lookup of `get_context`, inlined
        if context is None:
            context = provider.get_context(context_name)
        if context is None:
            raise AssertionError(f"Context {context_name} not found.")
        return context

    def structural_copy(self) -> Self:
        """Copy the tree, not the weights: chains and context modules are copied, other leaves are shared.

        Hooks are not copied; attributes are carried over by reference. Methods of copied modules that leaves hold
        (`Lambda(self.method)`) are bound to the copies, and so are references in lists and tuples.
        """
        with _structural_copy_scope() as copies:
            if self not in copies:
                copies[self] = self._copy_structure()
            return copies[self]

    def _copy_structure(self) -> Self:
        clone = twin(self)
        clone.__dict__["_parent"] = []
        return clone

    def get_path(self, parent: Chain | None = None, top: Module | None = None) -> str:
        return super().get_path(self.parent if parent is None else parent, top)

    @contextmanager
    def no_parent_refresh(self) -> Generator[None, None, None]:
        """Keep the parent as it is while this module is placed somewhere else."""
        before = self._can_refresh_parent
        self._can_refresh_parent = False
        try:
            yield
        finally:
            self._can_refresh_parent = before

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a part of a tree is not the whole tree: the parent restores the link.
        return {key: value for key, value in self.__dict__.items() if key != "_parent"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The parent may have come first, where this module refers back to what is above it.
        self.__dict__.setdefault("_parent", [])

    def __copy__(self) -> Self:
        return self.structural_copy()  # a shallow copy would share the children, which have one parent


class WeightedModule(Module):
    """A leaf with a weight."""

    weight: Tensor

    @property
    def device(self) -> Device:
        """The device of the weight."""
        return self.weight.device

    @property
    def dtype(self) -> DType:
        """The dtype of the weight."""
        return self.weight.dtype

    def __str__(self) -> str:
        attributes: dict[str, Any] = self.basic_attributes(init_attrs_only=True)
        attributes |= {"device": self.device, "dtype": str(self.dtype).removeprefix("torch.")}
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in attributes.items())})"


def structural_copy(m: T) -> T:
    """Copy a context module as `ContextModule.structural_copy` does; return any other module itself."""
    return cast(T, m.structural_copy()) if isinstance(m, ContextModule) else m


M = TypeVar("M", bound=Module)


def twin(module: M) -> M:
    """Return a new module with the attributes, parameters, buffers and children of another, but not its hooks."""
    other = type(module).__new__(type(module))
    Module.__init__(other)
    for key, value in module.__dict__.items():
        if key not in other.__dict__ and key not in _NOT_COPIED:
            other.__dict__[key] = value
    other.__dict__.update(
        _parameters=dict(module._parameters),
        _buffers=dict(module._buffers),
        _modules=dict(module._modules),
        training=module.training,
    )
    return other


# Compiled calls belong to the original; a parent and its temporary guard never travel.
_NOT_COPIED = frozenset({"_can_refresh_parent", "_compiled_call_impl", "_parent"})

Copies = dict[ContextModule, Any]
_copies: ContextVar[Copies | None] = ContextVar("structural_copies", default=None)


@contextmanager
def _structural_copy_scope() -> Generator[Copies, None, None]:
    """Share one table original -> copy between the nested calls of one structural copy."""
    shared = _copies.get()
    if shared is not None:
        yield shared
        return
    copies: Copies = {}
    token = _copies.set(copies)
    try:
        yield copies
        for clone in copies.values():
            _rebind_references(clone, copies)
    finally:
        _copies.reset(token)


def _rebind_references(clone: ContextModule, copies: Copies) -> None:
    for key, value in clone.__dict__.items():
        if key == "_modules":
            clone.__dict__[key] = {name: _rebind_leaf(child, copies) for name, child in value.items()}
        elif key != "_parent":
            clone.__dict__[key] = _rebind(value, copies)


def _rebind_leaf(leaf: Any, copies: Copies) -> Any:
    """Return the leaf itself, or a twin of it where it holds a method of a module that was copied."""
    if isinstance(leaf, ContextModule) or not isinstance(leaf, Module):
        return leaf
    rebound = {key: _rebind(value, copies) for key, value in leaf.__dict__.items() if inspect.ismethod(value)}
    if all(value is leaf.__dict__[key] for key, value in rebound.items()):
        return leaf
    other = twin(leaf)
    other.__dict__.update(rebound)
    return other


def _rebind(value: Any, copies: Copies) -> Any:
    if inspect.ismethod(value):
        owner = copies.get(value.__self__) if isinstance(value.__self__, ContextModule) else None
        return value if owner is None else value.__func__.__get__(owner)
    if type(value) in (list, tuple):
        items = [copies.get(item, item) if isinstance(item, ContextModule) else item for item in value]
        return value if all(a is b for a, b in zip(items, value)) else type(value)(items)
    return value
