"""Whether somebody looks on when a module is called: then it is called, whatever would be faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

_CALL = nn.Module.__call__


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks of its own or global ones, or a `forward` of its own."""
    return is_watched_state(module.__dict__) or has_global_hooks()


def has_global_hooks() -> bool:
    """Whether something is called for every module: hooks of torch, or what has taken the place of its call."""
    return bool(cast("object", _has_any_global_hook())) or nn.Module.__call__ is not _CALL


def is_watched_state(state: Mapping[str, Any]) -> bool:
    """Whether a module with this `__dict__` has hooks, or a `forward` as libraries set that move weights around,
    or is compiled.
    """
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or state.get("_compiled_call_impl")
    )
