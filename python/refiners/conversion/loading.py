"""Weights in any known format, straight into our models; nothing converted is written to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, device as Device, dtype as DType, nn

from refiners.conversion.checkpoint import Checkpoint, StateDict, TensorSource
from refiners.conversion.detection import Found, find_component
from refiners.conversion.formats import Component, formats_of, our_format
from refiners.conversion.matching import component_of, match
from refiners.conversion.naming.names import split_key

M = TypeVar("M", bound=nn.Module)
Source = TensorSource | Found | Path | str | Mapping[str, Tensor]


def load_into(
    module: M,
    source: Source,
    component: Component | None = None,
    device: Device | str | None = None,
    dtype: DType | None = None,
) -> M:
    """Load weights in any known format into a model.

    The format is told by names and shapes, and everything is checked by them before the first tensor is read. Tensors
    are then read, converted and put in place one at a time. Build the model on the meta device: it is then held once,
    and nothing is initialized in vain.

    Parameters on the meta device are created; others are written to where they are, and remain the same objects.

    Args:
        module: One of our models, without adapters in it.
        source: A file, a folder of one model, a `Checkpoint`, what `open_diffusion_checkpoint` found, or a state dict.
        component: The kind of the model (default: told by its keys).
        device: Where parameters that are on the meta device are created (default: cpu).
        dtype: Their dtype (default: that with which they were declared).

    Returns:
        The module itself.

    Raises:
        ValueError: If the source is in no known format, incomplete, or of another structure. It names the formats that
            were tried, and for the nearest what is missing, left over or of another shape; the module is as it was.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(source, (str, Path)):
        with Checkpoint(source) as checkpoint:
            return load_into(module, checkpoint, component, device, dtype)
    if isinstance(source, Found):
        return load_into(module, source.source, source.component if component is None else component, device, dtype)
    tensors = StateDict(source) if isinstance(source, Mapping) else source
    expected: dict[str, Tensor] = module.state_dict(keep_vars=True)
    _check_placement(expected, device, dtype)
    try:
        found = match({key: tensor.shape for key, tensor in expected.items()}, tensors.infos, component)
    except ValueError as error:
        raise ValueError(f"cannot load {tensors.label} into {type(module).__name__}: {error}") from error
    created: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    for key, recipe in sorted(found.recipes.items(), key=lambda item: tensors.place(item[1].key)):
        if expected[key].is_meta:
            created[key] = recipe.make(tensors, "cpu" if device is None else device, dtype or expected[key].dtype)
        else:
            written[key] = recipe.view(tensors)
    # From here on nothing can fail but a copy.
    with torch.no_grad():
        for key, tensor in written.items():
            expected[key].copy_(tensor)
        module.load_state_dict(created, strict=False, assign=True)
    return module


def _check_placement(expected: Mapping[str, Tensor], device: Device | str | None, dtype: DType | None) -> None:
    for key, tensor in expected.items():
        if tensor.is_meta:
            continue
        if device is not None and torch.device(device) != tensor.device:
            raise ValueError(f"device is for parameters on the meta device, but {key} is on {tensor.device}")
        if dtype is not None and dtype != tensor.dtype:
            raise ValueError(f"dtype is for parameters on the meta device, but {key} is {tensor.dtype} already")


def read_weights(
    source: Source,
    component: Component | None = None,
    device: Device | str = "cpu",
    dtype: DType | None = None,
) -> dict[str, Tensor]:
    """Read weights in any known format as a state dict in our layout.

    Args:
        source: A file, a folder of one model, a `Checkpoint`, what `open_diffusion_checkpoint` found, or a state dict.
        component: Which model is meant, where a file holds several.
        device: Where to.
        dtype: In which dtype (default: that of the file).

    Raises:
        ValueError: If the source is in no known format or incomplete, or holds several models and none was named.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(source, (str, Path)):
        with Checkpoint(source) as checkpoint:
            return read_weights(checkpoint, component, device, dtype)
    if not isinstance(source, Found):
        source = find_component(StateDict(source) if isinstance(source, Mapping) else source, component)
    return source.state_dict(device, dtype)


def to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of one of our models the names that diffusers, or transformers, has for them.

    Values are the same bit for bit, and shapes too but for that of the class token of image encoders. The two text
    encoders of Stable Diffusion XL come below `text_encoder/` and `text_encoder_2/`, the first without the last layer,
    which ours does not have.

    Args:
        state_dict: The state dict of one of our models, without adapters.

    Raises:
        ValueError: If it is of no known kind, or has no such names.
    """
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    component = component_of(shapes)
    ours = our_format(component)
    layout = ours.layout(shapes)
    theirs = next((each for each in formats_of(component) if each.library in ("diffusers", "transformers")), None)
    if theirs is None:
        raise ValueError(f"diffusers has no names for the layers of {component}")
    names = dict(zip((name.layer for name in ours.names(layout)), theirs.names(layout), strict=True))
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        layer, kind = split_key(key)
        if layer not in names:
            raise ValueError(f"state_dict has a key that a {component} does not have: {key!r}")
        name = names[layer]
        renamed[name.key(kind)] = tensor.flatten() if name.weight == "" and component == "clip_image" else tensor
    return renamed
