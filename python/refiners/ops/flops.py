"""How many operations the operators take, for `torch.utils.flop_counter.FlopCounterMode`.

They are those of the definition, as torch counts its own: two for each product that is added. What a kernel does
without, by Winograd's algorithm for one, is counted as well; additions and activations beside the products are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch.utils import flop_counter

Shape: TypeAlias = Sequence[int]
Formula = TypeVar("Formula", bound=Callable[..., int])


def counts_flops(name: str) -> Callable[[Formula], Formula]:
    """Tell torch that a function counts the operations of an operator, by the shapes of its arguments."""
    return cast(Any, flop_counter).register_flop_formula(getattr(torch.ops.refiners, name))
