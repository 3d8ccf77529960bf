"""Fixtures of the tests of layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def in_one_graph() -> Callable[..., Any]:
    """Call a module compiled; fail if that takes more than one graph."""

    def call(module: nn.Module, *args: Any) -> Any:
        torch.compiler.reset()  # what other tests have compiled does not count against the limit of this one
        return torch.compile(module, fullgraph=True, backend="eager")(*args)

    return call
