"""The name of a layer in a file of weights, and maps from one library's names to another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Size

Shapes = Mapping[str, Size]
"""The keys of a file, with the shapes of their tensors."""


@dataclass(frozen=True)
class Name:
    """Where the tensors of one layer are.

    Attributes:
        layer: The name of the layer.
        weight: What follows it in the key of the weight; empty if the tensor bears the name itself.
        bias: What follows it in the key of the bias.
        part: Which third of the rows is meant, where one tensor holds queries, keys and values.
        transposed: Whether the matrix is stored with its inputs first.
    """

    layer: str
    weight: str = ".weight"
    bias: str = ".bias"
    part: int | None = None
    transposed: bool = False

    @classmethod
    def bare(cls, name: str, transposed: bool = False) -> Name:
        """Name a tensor that is no layer's weight: its key is the name."""
        return cls(name, weight="", transposed=transposed)

    @classmethod
    def third(cls, layer: str, part: int) -> Name:
        """Name queries (0), keys (1) or values (2) within a `torch.nn.MultiheadAttention`."""
        return cls(layer, weight="_weight", bias="_bias", part=part)

    def under(self, prefix: str) -> Name:
        """Return the same name below a prefix."""
        return replace(self, layer=prefix + self.layer)

    def key(self, kind: str) -> str:
        """Give the key of the tensor of a kind, `"weight"` or `"bias"`."""
        return self.layer + (self.weight if kind == "weight" else self.bias)


def split_key(key: str) -> tuple[str, str]:
    """Split a key of ours into its layer and the kind of the tensor, `"weight"`, `"bias"` or something else."""
    layer, _, kind = key.rpartition(".")
    return layer, kind


def numbered(name: str, index: int, count: int) -> str:
    """Name the child number `index`, from 0, among `count` of its class in a chain; a lone child has no number."""
    return name if count == 1 else f"{name}_{index + 1}"


def key_map(theirs: Iterable[Name], ours: Iterable[Name]) -> dict[str, str]:
    """Pair the names of the same layers in two libraries, as a `WeightRecipe` takes them.

    A tensor without a suffix of its own is mapped to our key with its suffix.
    """
    return {
        source.layer: target.layer if source.weight == ".weight" else target.key("weight")
        for source, target in zip(theirs, ours, strict=True)
    }


def names(layers: Iterable[str]) -> list[Name]:
    """Name layers that hold a weight, and perhaps a bias, under these keys."""
    return [Name(layer) for layer in layers]
