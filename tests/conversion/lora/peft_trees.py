"""Trees of torch's own layers with the names of published ones, wrapped by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn

import refiners.fluxion.layers as fl


def theirs_like(layer: Any) -> nn.Module:
    """Make torch's own layer with the same weights."""
    if isinstance(layer, fl.Linear):
        other: Any = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    elif isinstance(layer, fl.Conv2d):
        sizes: Any = {"stride": layer.stride, "padding": layer.padding, "bias": layer.bias is not None}
        other = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, **sizes)
    else:
        other = nn.GroupNorm(layer.num_groups, layer.num_channels, eps=layer.eps)
    other.load_state_dict(layer.state_dict())
    return other.requires_grad_(False)


def input_of(layer: Any) -> Tensor:
    """Draw what a layer may get."""
    if isinstance(layer, fl.Linear):
        return torch.randn(2, 7, layer.in_features)
    return torch.randn(2, layer.weight.shape[1] if isinstance(layer, fl.Conv2d) else layer.num_channels, 6, 8)


def wrap(layers: Mapping[str, Any], config: PeftConfig, *, randomized: bool = True) -> Any:
    """Give a tree with layers like these, by their names, updates: random ones, or those that training begins with."""
    tree = nn.Module()
    for name, layer in layers.items():
        *path, last = name.split(".")
        parent = tree
        for each in path:
            if each not in dict(parent.named_children()):
                parent.add_module(each, nn.Module())
            parent = parent.get_submodule(each)
        parent.add_module(last, theirs_like(layer))
    wrapped: Any = get_peft_model(tree, config)  # pyright: ignore[reportArgumentType]
    for name, parameter in wrapped.named_parameters():
        if randomized and "base_layer" not in name:
            with torch.no_grad():
                parameter.mul_(1 + torch.rand_like(parameter)).add_(0.1 * torch.randn_like(parameter))
    return wrapped
