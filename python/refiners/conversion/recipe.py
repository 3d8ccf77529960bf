"""How the keys and shapes of one library's weights become ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

AnyDict = dict[str, Any]
TensorDict = dict[str, Tensor]


@dataclass
class WeightRecipe:
    """A map from the names of the layers in a file of weights to ours.

    Attributes:
        key_map: Our name of each layer, by theirs, without `.weight` and `.bias`. What is not in it is dropped.
        key_prefix: What stands before their names.
        key_aliases: Other spellings of their names, without the prefix, as in older files.
        tensor_reshapes: The shapes that tensors must take, by our key.
    """

    key_map: dict[str, str]
    key_prefix: str = ""
    key_aliases: dict[str, str] = field(default_factory=dict[str, str])
    tensor_reshapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])

    @staticmethod
    def flatten_state_dict(state_dict: AnyDict, sep: str = ".") -> AnyDict:
        """Flatten nested dictionaries, joining their keys.

        Raises:
            ValueError: If two entries get the same key.
        """
        flat: AnyDict = {}
        for key, value in state_dict.items():
            nested = isinstance(value, Mapping)
            items = WeightRecipe.flatten_state_dict(cast(AnyDict, value), sep) if nested else {"": value}
            for inner, item in items.items():
                name = f"{key}{sep}{inner}" if nested else key
                if name in flat:
                    raise ValueError(f"state_dict has two entries of the key {name!r} once it is flat")
                flat[name] = item
        return flat

    def name_map_keys(self, state_dict: AnyDict) -> AnyDict:
        """Give the entries that are in the map our names.

        Raises:
            ValueError: If two of them get the same name.
        """
        mapped: AnyDict = {}
        for key, value in state_dict.items():
            name, suffix = key, ""
            for kind in (".weight", ".bias"):
                if key.endswith(kind):
                    name, suffix = key.removesuffix(kind), kind
            name = name.removeprefix(self.key_prefix)
            target = self.key_map.get(self.key_aliases.get(name, name))
            if target is None:
                continue
            if target + suffix in mapped:
                raise ValueError(f"state_dict has two entries for {target + suffix!r}, the second is {key!r}")
            mapped[target + suffix] = value
        return mapped

    def reshape_tensors(self, state_dict: TensorDict) -> TensorDict:
        """Reshape the tensors, keyed by our names, that must be."""
        shapes = self.tensor_reshapes
        return {key: tensor.reshape(shapes[key]) if key in shapes else tensor for key, tensor in state_dict.items()}

    def translate_keys(self, state_dict: AnyDict, flatten_state_dict: bool = True) -> TensorDict:
        """Give the tensors our names and shapes, dropping what is not in the map.

        Args:
            state_dict: The tensors by their names.
            flatten_state_dict: Whether dictionaries in it are flattened first.
        """
        flat = self.flatten_state_dict(state_dict) if flatten_state_dict else state_dict
        return self.reshape_tensors(self.name_map_keys(flat))
