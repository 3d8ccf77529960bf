"""Run a model and look at the outputs of some of its layers, leaving the model as it was."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypedDict, cast

from torch import Tensor, nn

from refiners.fluxion.utils import no_grad


class ModuleArgsDict(TypedDict):
    """The arguments of a model that takes both positional and keyword arguments."""

    positional: tuple[Any, ...]
    keyword: dict[str, Any]


ModuleArgs = tuple[Any, ...] | ModuleArgsDict | dict[str, Any]


def split_arguments(args: ModuleArgs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split the arguments of a model into positional and keyword ones.

    Args:
        args: A tuple of positional arguments, a `ModuleArgsDict`, or any other dict of keyword arguments.

    Raises:
        TypeError: If the arguments are neither a tuple nor a dict.
    """
    if isinstance(args, tuple):
        return args, {}
    if not isinstance(args, dict):
        raise TypeError(f"the arguments of a model must be a tuple or a dict, got {type(args).__name__}")
    if args.keys() == {"positional", "keyword"}:
        return tuple(args["positional"]), dict(args["keyword"])
    return (), cast(dict[str, Any], args)


@contextmanager
def evaluation_mode(*models: nn.Module) -> Generator[None]:
    """Put models in evaluation mode without gradients, and restore the mode of each of their modules."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def run_observed(
    model: nn.Module,
    args: ModuleArgs,
    layers: Mapping[str, nn.Module],
    observe: Callable[[str, Any], None],
) -> None:
    """Run a model and pass the output of each execution of some layers to a callback, in execution order.

    Args:
        model: The model; its mode and its hooks are the same afterwards, also if it raises.
        args: Its arguments.
        layers: The layers to observe, by name.
        observe: Called with the name of the layer and its output.
    """
    positional, keyword = split_arguments(args)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(_hook(name, observe)).remove)
        model(*positional, **keyword)


def _hook(name: str, observe: Callable[[str, Any], None]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        observe(name, output)

    return hook


def output_tensors(output: Any) -> list[Tensor]:
    """List the tensors of an output: a tensor, or tuples, lists and dicts of outputs; other values are left out."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(cast(Mapping[Any, Any], output).values())
    if isinstance(output, tuple | list):
        return [tensor for item in cast(list[Any], output) for tensor in output_tensors(item)]
    return []
