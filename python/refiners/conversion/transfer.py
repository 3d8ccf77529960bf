"""Build the state dict of a model from that of another one, given which layer stands for which."""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from refiners.conversion.signatures import named_modules


def transferred_state_dict(
    source: nn.Module, target: nn.Module, mapping: Mapping[str, str], keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """Build the state dict of the target from the tensors of the source, parameters and buffers.

    Args:
        source: The model that has the tensors.
        target: The model whose keys are wanted.
        mapping: The names of the target's layers, each with its counterpart in the source.
        keep: Names of layers of the target that keep their own tensors.

    Raises:
        KeyError: If a key of the target belongs to no layer of the mapping, or the source lacks its counterpart.
    """
    return convert_state_dict(source.state_dict(), target.state_dict(), mapping, keep, _first_names(target))


def convert_state_dict(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    mapping: Mapping[str, str],
    keep: Collection[str] = (),
    first_names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Give each key of a state dict the tensor that another one has under the name of the counterpart.

    A key belongs to the innermost module of the mapping that contains it: a layer brings along whatever is inside it.

    Args:
        source: The state dict that has the tensors.
        target: The state dict whose keys are wanted.
        mapping: The names of the target's layers, each with its counterpart in the source.
        keep: Names of layers of the target that keep their own tensors.
        first_names: For the further names of a layer of the target, the one that the mapping and `keep` know it by.

    Raises:
        KeyError: If a key of the target belongs to no layer of the mapping, or the source lacks its counterpart.
    """
    result: dict[str, Tensor] = {}
    for key, tensor in target.items():
        for prefix, suffix in _splits(key):
            name = first_names.get(prefix, prefix)
            if name in mapping:
                source_key = f"{mapping[name]}.{suffix}".removeprefix(".")
                if source_key not in source:
                    raise KeyError(f"the source has no {source_key!r}, the counterpart of {key!r} of the target")
                result[key] = source[source_key]
                break
            if name in keep:
                result[key] = tensor
                break
        else:
            raise KeyError(
                f"{key!r} of the target has no counterpart: its layer did not run, or is not of a basic type. "
                "Run all layers, add its type to custom_layer_mapping, or its name to target_keys_to_skip"
            )
    return result


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """Split a state-dict key into a module and the rest, innermost module first and the model itself last."""
    parts = key.split(".")
    for length in range(len(parts) - 1, -1, -1):
        yield ".".join(parts[:length]), ".".join(parts[length:])


def _first_names(model: nn.Module) -> dict[str, str]:
    """Map each name of each module to the first name of it: a module that appears several times runs under that one."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(module), name) for name, module in named_modules(model, remove_duplicate=False)}
