"""How the converter recognises a layer: its basic type and the shapes of its parameters."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import cast

from torch import Size, nn

TORCH_BASIC_LAYERS: list[type[nn.Module]] = [
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Embedding,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
]

ModelTypeShape = tuple[type[nn.Module], tuple[Size, ...]]
LayerMapping = Mapping[type[nn.Module], type[nn.Module]]


def basic_type(module: nn.Module, mapping: LayerMapping) -> type[nn.Module] | None:
    """Find the basic type of a module, walking its classes from the most to the least derived.

    Args:
        module: The module to classify.
        mapping: The custom types, source to target; both sides are basic, and come before the types of torch.

    Returns:
        The first custom type among the classes of the module, else the first type of `TORCH_BASIC_LAYERS`, else None.
    """
    custom_types = {*mapping.keys(), *mapping.values()}
    classes = type(module).__mro__
    for known_types in (custom_types, set(TORCH_BASIC_LAYERS)):
        for cls in classes:
            if cls in known_types:
                return cls
    return None


def signature(module: nn.Module, mapping: LayerMapping) -> ModelTypeShape:
    """Describe a basic layer by its basic type and the shapes of its parameters, in order.

    Raises:
        AssertionError: If the module is not a basic layer.
    """
    layer_type = basic_type(module, mapping)
    if layer_type is None:
        raise AssertionError(f"{type(module).__name__} is not a basic layer, add it to custom_layer_mapping")
    return layer_type, tuple(parameter.shape for parameter in module.parameters())


def translate(layer: ModelTypeShape, mapping: LayerMapping) -> ModelTypeShape:
    """Turn the signature of a source layer into the signature that the target must show."""
    layer_type, shapes = layer
    return mapping.get(layer_type, layer_type), shapes


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """List the modules of a model with their names; torch leaves their types partially unknown."""
    return list(cast(Iterable[tuple[str, nn.Module]], model.named_modules(remove_duplicate=remove_duplicate)))


def basic_layers(model: nn.Module, mapping: LayerMapping, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """List the basic layers of a model by name, without the names to skip."""
    skipped = set(skip)
    return {
        name: module
        for name, module in named_modules(model)
        if name not in skipped and basic_type(module, mapping) is not None
    }


def unknown_weighted_leaves(model: nn.Module, mapping: LayerMapping, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """List, by name, the modules with parameters and without children that are not basic layers."""
    skipped = set(skip)
    return {
        name: module
        for name, module in named_modules(model)
        if name not in skipped
        and next(module.children(), None) is None
        and next(module.parameters(), None) is not None
        and basic_type(module, mapping) is None
    }


def describe(layer: ModelTypeShape) -> str:
    """Write a signature on one line, as `Linear [(2, 1), (2,)]`."""
    layer_type, shapes = layer
    return f"{layer_type.__name__} [{', '.join(str(tuple(shape)) for shape in shapes)}]"


def difference_table(source: Counter[ModelTypeShape], target: Counter[ModelTypeShape]) -> str:
    """Tabulate the signatures that two models do not show equally often, in order of appearance."""
    differing = [layer for layer in {**source, **target} if source[layer] != target[layer]]
    rows = [("layer", "source", "target")]
    rows += [(describe(layer), str(source[layer]), str(target[layer])) for layer in differing]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
