"""Data on published models: the layouts of ours, and the names of their layers elsewhere."""

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Size, Tensor, nn

DATA = Path(__file__).parents[1] / "data" / "conversion"


@cache
def load(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@pytest.fixture
def layout_of() -> Callable[[str], dict[str, Size]]:
    """Give the keys and shapes of a published model of ours, by its name."""
    return lambda name: {key: Size(shape) for key, shape in load("layouts")[name].items()}


@pytest.fixture
def key_map_of() -> Callable[[str], dict[str, str]]:
    """Give the names of the layers of an original and ours, by the name of the conversion."""
    return lambda name: dict(load("key_maps")[name])


@pytest.fixture
def registry() -> dict[str, Any]:
    """What is published, by the name of its module and its own."""
    return load("hub_registry")


def module_of(shapes: dict[str, Size], device: str = "meta", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a module with parameters of these keys and shapes, as our models have them."""
    root = nn.Module()
    for key, shape in shapes.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device, dtype=dtype)))
    return root


@pytest.fixture
def make_module() -> Callable[..., nn.Module]:
    """See `module_of`."""
    return module_of


@pytest.fixture
def random_like() -> Callable[[dict[str, Size]], dict[str, Tensor]]:
    """Fill shapes with random numbers."""
    return lambda shapes: {key: torch.randn(shape) for key, shape in shapes.items()}
