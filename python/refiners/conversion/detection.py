"""Which models a file of weights holds, told by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor, device as Device, dtype as DType

from refiners.conversion.checkpoint import TensorSource
from refiners.conversion.formats import COMPONENTS, Component, Format, formats_of, our_format
from refiners.conversion.matching import Match, TensorRecipe, our_shape, recipe_for
from refiners.conversion.naming.names import Shapes
from refiners.conversion.tensor_info import TensorInfo


@dataclass(frozen=True)
class Found:
    """A model in a source.

    Attributes:
        source: Where its tensors are.
        format: The format of their names.
        layout: The structure of the model: a `UNetLayout`, `AutoencoderLayout`, `CLIPLayout`, ...
        recipes: How each of our tensors is made, by our key.
        missing: The keys that a model of this structure should have.
        unknown: The keys below the same prefix that belong to no layer of it.
        unfit: The keys whose tensors cannot be those of the layer, and what they are.
    """

    source: TensorSource = field(repr=False)
    format: Format = field(repr=False)
    layout: Any
    recipes: dict[str, TensorRecipe] = field(repr=False)
    missing: list[str]
    unknown: list[str]
    unfit: list[str]

    @property
    def component(self) -> Component:
        """The kind of the model."""
        return self.format.component

    @property
    def shapes(self) -> dict[str, Size]:
        """The shape of each tensor, by our key."""
        return {key: recipe.shape for key, recipe in self.recipes.items()}

    @property
    def infos(self) -> list[TensorInfo]:
        """The tensors of the source that the model is made of."""
        return [self.source.infos[key] for key in {recipe.key for recipe in self.recipes.values()}]

    @property
    def dtype(self) -> DType:
        """The dtype of most of its numbers."""
        sizes: Counter[DType] = Counter()
        for info in self.infos:
            sizes[info.dtype] += info.shape.numel()
        return sizes.most_common(1)[0][0]

    @property
    def parameters(self) -> int:
        """How many numbers the model is made of."""
        return sum(recipe.shape.numel() for recipe in self.recipes.values())

    def check(self) -> None:
        """Raise `ValueError` if a tensor is missing or unfit, or there are unknown ones, and list them."""
        if self.missing or self.unknown or self.unfit:
            problems = Match(self.format, {}, self.missing, self.unknown, self.unfit).describe()
            raise ValueError(f"{self.source.label} holds no whole {self.component} ({self.format}):\n{problems}")

    def state_dict(self, device: Device | str = "cpu", dtype: DType | None = None) -> dict[str, Tensor]:
        """Read the model's state dict, in our layout.

        Args:
            device: Where to.
            dtype: In which dtype (default: that of the file).

        Raises:
            ValueError: If it is not whole.
        """
        self.check()
        order = sorted(self.recipes.items(), key=lambda item: self.source.place(item[1].key))
        read = {key: recipe.make(self.source, device, dtype) for key, recipe in order}
        return {key: read[key] for key in self.recipes}


def find_components(source: TensorSource) -> list[Found]:
    """Find the models in a source, also those that lack tensors; where formats compete, the best."""
    shapes = {key: info.shape for key, info in source.infos.items()}
    found: list[Found] = []
    for component in COMPONENTS:
        candidates = [_found(source, fmt, shapes) for fmt in formats_of(component)]
        whole = [each for each in candidates if each is not None]
        if component == "clip_text":  # a file may hold two
            found += {each.format.prefix: each for each in sorted(whole, key=_badness, reverse=True)}.values()
        elif whole:
            found.append(min(whole, key=_badness))
    doubles = [each for each in found if each.component == "double_text_encoder"]
    return [each for each in found if not (doubles and each.component == "clip_text")]


def _badness(found: Found) -> int:
    return len(found.missing) + len(found.unknown) + len(found.unfit)


def find_component(source: TensorSource, component: Component | None = None) -> Found:
    """Find one model in a source.

    Args:
        source: A checkpoint.
        component: Which; it may be left out where there is one alone.

    Raises:
        ValueError: If there is no such model, or several.
    """
    found = find_components(source)
    matching = [each for each in found if component in (None, each.component)]
    if len(matching) == 1:
        return matching[0]
    holds = ", ".join(f"{each.component} ({each.format})" for each in found) or "no model in a format that is known"
    wanted = "one model" if component is None else f"one {component}"
    keys = "" if found else f"; its first keys are {', '.join(list(source.infos)[:3])}"
    raise ValueError(f"{source.label} must hold {wanted}; it holds {holds}{keys}")


def _found(source: TensorSource, fmt: Format, shapes: Shapes) -> Found | None:
    below = fmt.below(shapes)
    layout = fmt.layout(below) if below else None
    if layout is None:
        return None
    recipes: dict[str, TensorRecipe] = {}
    missing: list[str] = []
    unfit: list[str] = []
    used: set[str] = set()
    for ours, theirs in zip(our_format(fmt.component).names(layout), fmt.names(layout), strict=True):
        for kind in ("weight", "bias"):
            key = theirs.key(kind)
            used.add(key)
            if key not in below:
                if kind == "weight":
                    missing.append(fmt.prefix + key)
                continue
            info = source.infos[fmt.prefix + key]
            recipe = recipe_for(theirs, fmt.prefix + key, info, our_shape(ours.layer, kind, theirs, info.shape))
            if recipe is None or not info.dtype.is_floating_point:
                unfit.append(f"{fmt.prefix}{key}: got {tuple(info.shape)} in {info.dtype}")
            else:
                recipes[ours.key(kind)] = recipe
    missing += [fmt.prefix + key for key in _missing_biases(fmt, layout, below)]
    unknown = [fmt.prefix + key for key in below if key not in used and not fmt.is_extra(key, layout)]
    return Found(source, fmt, layout, recipes, list(dict.fromkeys(missing)), unknown, unfit)


def _missing_biases(fmt: Format, layout: Any, shapes: Shapes) -> list[str]:
    """List the biases that are not there although the layer's class, or that of its peers in other blocks, has one."""
    required: dict[str, bool] = {}
    absent: dict[str, list[str]] = {}
    for ours, theirs in zip(our_format(fmt.component).names(layout), fmt.names(layout), strict=True):
        place = re.sub(r"\d+", "#", ours.layer)
        found = theirs.key("bias") in shapes
        required[place] = required.get(place, False) or found or _HAS_BIAS.search(ours.layer) is not None
        absent.setdefault(place, []).extend([] if found else [theirs.key("bias")])
    return [key for place in absent if required[place] for key in absent[place]]


_HAS_BIAS = re.compile(
    r"((GroupNorm|LayerNorm|(?<!PatchEncoder\.)Conv2d)(_\d+)?|\.(SelfAttention(2d)?|Attention)\.Linear)$"
)
