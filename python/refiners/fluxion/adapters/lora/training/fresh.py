"""Fresh updates for the layers of a tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Generator, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.checks import check_name
from refiners.fluxion.adapters.lora.training.choice import LAYERS, check_texts, choose_places
from refiners.fluxion.adapters.lora.training.initialisation import Initialisation, check_initialisation, initialise
from refiners.fluxion.adapters.lora.training.settings import LoraSizes, as_list
from refiners.fluxion.adapters.lora.training.trainable_loras import TrainableLoras
from refiners.fluxion.bulk import collections_paused


def add_trainable_loras(
    name: str,
    target: fl.Chain,
    /,
    *,
    rank: int = 16,
    alpha: float | None = None,
    rank_stabilized: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dropout: float = 0.0,
    initialisation: Initialisation = "gaussian",
    layer_types: Sequence[type[fl.WeightedModule]] = LAYERS,
    paths: str | Sequence[str] | None = None,
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
    generator: Generator | None = None,
    dtype: DType | None = None,
) -> TrainableLoras:
    """Attach a fresh update to each of some layers below a chain, and freeze all else in it: all of them, or none.

    What the chain computes does not change until the updates are trained. Patterns are regular expressions that fit a
    whole path, or its end after a dot; a path is the key of a layer in the state dict of the chain without adapters.

    Args:
        name: What the updates are called.
        target: The chain.
        rank: The inner dimension of the updates.
        alpha: Updates are multiplied by alpha / rank (default: the rank of each, so that the multiplier is 1).
        rank_stabilized: Whether they are multiplied by alpha / √rank instead; see
            [[arXiv:2312.03732] rsLoRA](https://arxiv.org/abs/2312.03732), theorem 3.2.
        rank_pattern: Other ranks, by patterns of paths.
        alpha_pattern: Other alphas, by patterns of paths.
        dropout: How likely an element of what an update takes is set to 0 while training.
        initialisation: What the updates begin with.
        layer_types: The classes of the layers.
        paths: If given, only layers that this pattern fits, or one of these.
        include: If given, only layers with a chain of one of these classes above them.
        exclude: No layers with a chain of one of these classes above them.
        generator: Where the random numbers come from: a seed of it gives the same updates, whatever else was drawn.
        dtype: That of the weights of the updates (default: float32, or that of the layer if it is wider).

    Returns:
        The updates.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If a number is out of range, no layer is chosen, a pattern fits none, a layer has an update of this
            name or cannot have one. In any case the chain is as it was, and nothing was drawn.
    """
    check_name(name)
    if not isinstance(target, fl.Chain):
        raise TypeError(f"target must be a chain, got {type(target).__name__}")
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    kinds = layer_types if isinstance(layer_types, Sequence) else ()
    if not kinds or not all(isinstance(each, type) and issubclass(each, LAYERS) for each in kinds):
        raise TypeError(f"layer_types must be some of Linear and Conv2d, or subclasses of them, got {layer_types!r}")
    check_texts("include", include)
    check_texts("exclude", exclude)
    sizes = LoraSizes(rank, alpha, rank_stabilized, rank_pattern or {}, alpha_pattern or {}, dropout, dtype)
    places = choose_places(target, layer_types, as_list(paths), include, exclude)
    layers: dict[str, Any] = {path: place.layer for path, place in places.items()}
    with collections_paused():
        found = TrainableLoras(name, target, sizes.make(name, layers), layers)
        found.find_places()
        for path, lora in found.loras.items():
            check_initialisation(initialisation, path, layers[path], lora.rank, lora.multiplier)
        for path, lora in found.loras.items():
            initialise(lora, layers[path], initialisation, generator)
            lora.train(layers[path].training)
        return found.inject()
