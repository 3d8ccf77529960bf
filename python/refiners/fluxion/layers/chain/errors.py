"""Errors that say where in the tree they happened."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor

from refiners.fluxion.layers.tree import ModuleTree

if TYPE_CHECKING:
    from refiners.fluxion.layers.chain.chain import Chain

_TREE_DEPTH = 3
_MAX_TREE_LINES = 10  # around the layer that failed
_MAX_OUTER_LINES = 2  # around each chain that it is in
_MAX_DESCRIPTION = 300  # characters of an argument
_MAX_SUMMARIZED = 1 << 16  # elements: statistics of larger tensors would make errors slow
_MACHINERY = (str(Path(torch.__file__).parent / "nn" / "modules" / "module.py"), str(Path(__file__).parent))

# How a checkpoint of torch ends the call that computes again what it needs.
_STOP: type[Exception] | tuple[()] = getattr(torch.utils.checkpoint, "_StopRecomputationError", ())


class ChainError(RuntimeError):
    """A layer of a chain has failed; `__cause__` is the original exception."""

    def __init__(self, message: str, /) -> None:
        super().__init__(message)


class ReturnException(Exception):
    """Raised by `Return` to end the call of the chain around it; `value` is the result."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


def is_a_stop(error: Exception) -> bool:
    """Whether an exception is no failure, but the way in which torch ends a call early."""
    return isinstance(error, _STOP)


def chain_error(error: Exception, chain: Chain, name: str, args: tuple[Any, ...]) -> tuple[ChainError, BaseException]:
    """Describe the failure of the child `name` of a chain; return the error to raise and the original exception.

    Chains around the one that failed add their own view, a narrow one, below the text of the inner ones. Nothing here
    may raise, wait for a device, or cost more than a few milliseconds: it runs in retry loops after running out of
    memory, too.
    """
    original = error.__cause__ if isinstance(error, ChainError) and error.__cause__ is not None else error
    if original is error:
        text = "\n".join((*_frames(error), *(line for line in _message(error).splitlines() if line.strip())))
        if "Error" not in text:
            text = f"{type(original).__name__}:\n{text}"
    else:
        text = str(error)  # begins as the innermost one did
    max_lines = _MAX_TREE_LINES if original is error else _MAX_OUTER_LINES
    return ChainError("\n".join((text, "-" * 15, *_view(chain, name, args, max_lines)))), original


def _view(chain: Chain, name: str, args: tuple[Any, ...], max_lines: int) -> tuple[str, ...]:
    try:
        tree = error_tree(chain, name, max_lines)
    except Exception as failure:  # the layers are the user's: what they say of themselves may fail
        tree = f">>> {type(chain).__name__}.{name} (<{type(failure).__name__} in the drawing>)"
    lines = (tree, pretty_print_args(*args)) if args else (tree,)
    try:
        hint = chain._hint(*args)
    except Exception as failure:
        hint = f"<{type(failure).__name__} in the hint of {type(chain).__name__}>"
    return (*lines, hint) if hint else lines


def _shortened(text: str) -> str:
    lines = text.splitlines()
    shown = lines[0][:_MAX_DESCRIPTION] if lines else ""
    return shown if shown == text else f"{shown}..."


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"{type(error).__name__} (<{type(failure).__name__} in its text>)"


def _frames(error: BaseException) -> list[str]:
    return [
        f"{frame.filename}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_MACHINERY) and not frame.name.startswith("_")
    ]


def error_tree(chain: Chain, name: str, max_lines: int) -> str:
    """Draw the tree around the child under a key, marked with `>>> ` and its path; without mark if there is none."""
    child = chain._modules.get(name)
    if child is None:
        return ModuleTree.shorten_tree_repr(ModuleTree(chain, _TREE_DEPTH).draw(), max_lines=2 * max_lines)
    drawing = ModuleTree(chain, _TREE_DEPTH, marked=child, mark=_state_path(chain, name)).draw()
    marked = next(index for index, line in enumerate(drawing.split("\n")) if ">>> " in line)
    return ModuleTree.shorten_tree_repr(drawing, marked, max_lines)


def _state_path(chain: Chain, name: str) -> str:
    return ".".join([*chain.get_path().split(".")[1:], name])


def pretty_print_args(*args: Any) -> str:
    """Describe arguments, one `i: description` a line; tuples are flattened."""
    return "\n".join(f"{index}: {_describe(argument)}" for index, argument in enumerate(_flattened(args)))


def _flattened(args: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    for argument in args:
        flat.extend(_flattened(cast("tuple[Any, ...]", argument)) if isinstance(argument, tuple) else [argument])
    return flat


def _describe(argument: Any) -> str:
    try:
        return _summary(argument) if isinstance(argument, Tensor) else _shortened(str(argument))
    except Exception as failure:
        return f"{type(argument).__name__}(<{type(failure).__name__} in its description>)"


def _summary(argument: Tensor) -> str:
    if argument.device.type == "cpu" and argument.numel() <= _MAX_SUMMARIZED:
        from refiners.fluxion.utils import summarize_tensor

        return summarize_tensor(argument)
    dtype = str(argument.dtype).removeprefix("torch.")
    return f"Tensor(shape={tuple(argument.shape)}, dtype={dtype}, device={argument.device})"
