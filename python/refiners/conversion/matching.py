"""Which tensors of a file become which of ours, decided by names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor, device as Device, dtype as DType

from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.formats import COMPONENTS, Component, Format, formats_of, our_format
from refiners.conversion.naming.names import Name, split_key
from refiners.conversion.tensor_info import TensorInfo

_SHOWN = 10


@dataclass(frozen=True)
class TensorRecipe:
    """How one of our tensors is made.

    Attributes:
        key: The tensor of the file.
        shape: Our shape.
        rows: The rows to take, where the tensor holds several of ours.
        transposed: Whether to transpose it.
    """

    key: str
    shape: Size
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def make(self, source: TensorSource, device: Device | str = "cpu", dtype: DType | None = None) -> Tensor:
        """Read the tensor into memory of its own, contiguous."""
        if not self.transposed:
            return source.read(self.key, device, dtype, self.rows).view(self.shape)
        return source.read(self.key, "cpu", dtype, self.rows).t().contiguous().to(device)

    def view(self, source: TensorSource) -> Tensor:
        """Return the tensor on the memory of its file."""
        tensor = source.view(self.key)
        if self.rows is not None:
            tensor = tensor[self.rows[0] : self.rows[1]]
        return tensor.t() if self.transposed else tensor.reshape(self.shape)


@dataclass
class Match:
    """How well a source fits a model in one format.

    Attributes:
        format: The format.
        recipes: How each of our tensors is made, by our key.
        missing: The keys of the source that should be there.
        left_over: The keys that nothing is made of.
        unfit: The keys whose tensors are of another shape or kind of dtype, and how.
    """

    format: Format
    recipes: dict[str, TensorRecipe] = field(default_factory=dict[str, TensorRecipe])
    missing: list[str] = field(default_factory=list[str])
    left_over: list[str] = field(default_factory=list[str])
    unfit: list[str] = field(default_factory=list[str])

    @property
    def problems(self) -> int:
        """How many keys are wrong."""
        return len(self.missing) + len(self.left_over) + len(self.unfit)

    def describe(self) -> str:
        """List what is wrong, the first ten of each kind."""
        lines = _listing("missing", self.missing) + _listing("left over", self.left_over)
        return "\n".join(lines + _listing("of another shape or dtype", self.unfit))


def _listing(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    rest = [f"    ... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"{len(items)} {title}:", *(f"    {item}" for item in items[:_SHOWN]), *rest]


def component_of(shapes: Mapping[str, Size]) -> Component:
    """Tell which kind of model has these keys of ours.

    Raises:
        ValueError: If none has.
    """
    for component in COMPONENTS:
        if our_format(component).layout(shapes) is not None:
            return component
    raise ValueError(
        f"these are not the keys of a model whose weights can be read; known are {', '.join(COMPONENTS)}; "
        f"the first keys are {', '.join(list(shapes)[:3]) or '(none)'}"
    )


def match(target: Mapping[str, Size], source: Mapping[str, TensorInfo], component: Component | None = None) -> Match:
    """Find the format of a source, and how each tensor of a model is made from it.

    Args:
        target: The keys and shapes of the model.
        source: The keys, shapes and dtypes of the source.
        component: The kind of the model (default: told by its keys).

    Raises:
        ValueError: If the model is of no known kind or has keys of its own, or the source has another format, lacks a
            tensor, has one too many or one of another shape: what is wrong in the nearest format.
    """
    kind = component_of(target) if component is None else component
    ours = our_format(kind)
    layout = ours.layout(target)
    if layout is None:
        raise ValueError(f"module has not the keys of a {kind}, but {', '.join(list(target)[:3])}, ...")
    layers = [name.layer for name in ours.names(layout)]
    known = set(layers)
    if foreign := [key for key in target if split_key(key)[0] not in known or split_key(key)[1] not in _KINDS]:
        raise ValueError(
            f"module is a {kind} with keys of its own (are adapters in place? eject them, load, and inject again):\n"
            + "\n".join(_listing("unknown", foreign))
        )
    matches = [_match_format(each, target, source, layers, layout) for each in formats_of(kind)]
    best = min(matches, key=lambda found: found.problems)
    if best.problems:
        tried = ", ".join(dict.fromkeys(str(found.format) for found in matches))
        raise ValueError(
            f"this is no {kind} of the structure of the module in any known format (tried: {tried}); "
            f"{_nearest(best)}\n{best.describe()}"
        )
    return best


_KINDS = ("weight", "bias")


def _nearest(best: Match) -> str:
    if not best.recipes:
        return "not one tensor has a name that is expected; in the first of them:"
    return f"the nearest is {best.format}, in which there are"


def _match_format(
    fmt: Format, target: Mapping[str, Size], source: Mapping[str, TensorInfo], layers: list[str], layout: Any
) -> Match:
    theirs = dict(zip(layers, fmt.names(layout), strict=True))
    found = Match(fmt)
    used: set[str] = set()
    for key, shape in target.items():
        layer, kind = split_key(key)
        name = theirs[layer]
        source_key = fmt.prefix + name.key(kind)
        info = source.get(source_key)
        if info is None:
            if source_key not in used:
                found.missing.append(source_key)
        else:
            recipe = recipe_for(name, source_key, info, shape)
            if recipe is None:
                found.unfit.append(f"{source_key}: {_expected(name, shape)}, got {tuple(info.shape)}")
            elif not info.dtype.is_floating_point:
                found.unfit.append(f"{source_key}: expected floating point, got {info.dtype}")
            else:
                found.recipes[key] = recipe
        used.add(source_key)
    for key in source:
        inner = key.removeprefix(fmt.prefix)
        if key.startswith(fmt.prefix) and key not in used and not fmt.is_extra(inner, layout):
            found.left_over.append(key)
    return found


def recipe_for(name: Name, key: str, info: TensorInfo, shape: Size) -> TensorRecipe | None:
    """Tell how a tensor of a shape is made from one of a file; None if it cannot be.

    A linear layer and a convolution of 1×1 are the same but for two dimensions of size 1, as are a vector and a matrix
    of one row.
    """
    found, rows = info.shape, None
    if name.part is not None:
        if len(found) == 0 or found[0] % 3:
            return None
        third = found[0] // 3
        rows = (name.part * third, (name.part + 1) * third)
        found = Size((third, *found[1:]))
    if name.transposed:
        found = Size(reversed(found))
    if found != shape and _essential(found) != _essential(shape):
        return None
    return TensorRecipe(key, shape, rows, name.transposed)


def _essential(shape: Iterable[int]) -> tuple[int, ...]:
    sizes = list(shape)
    if len(sizes) == 4 and sizes[2:] == [1, 1]:
        del sizes[2:]
    while len(sizes) > 1 and sizes[0] == 1:
        del sizes[0]
    return tuple(sizes)


def _expected(name: Name, shape: Size) -> str:
    sizes = tuple(reversed(shape)) if name.transposed else tuple(shape)
    if name.part is not None:
        sizes = (3 * sizes[0], *sizes[1:])
    return f"expected {sizes}"


def our_shape(layer: str, kind: str, name: Name, shape: Size) -> Size:
    """Give the shape that our layer has, where a file has a tensor of some shape for it.

    The layer's class, the last part of its name, says whether its weight is a matrix or that of a convolution.
    """
    sizes = Size(reversed(shape)) if name.transposed else shape
    if name.part is not None:
        sizes = Size((sizes[0] // 3, *sizes[1:]))
    if kind == "bias":
        return sizes
    match layer.rpartition(".")[2].partition("_")[0]:
        case "Linear" if len(sizes) == 4 and sizes[2:] == (1, 1):
            return sizes[:2]
        case "Conv2d" if len(sizes) == 2:
            return Size((*sizes, 1, 1))
        case "Parameter":
            return Size((math.prod(sizes[:-1]), sizes[-1]))
        case _:
            return sizes
