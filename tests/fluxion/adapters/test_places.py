"""Layers are found by the paths that they have without adapters."""

from __future__ import annotations

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.fluxion.adapters.lora.attach import attach_loras
from refiners.fluxion.adapters.lora.places import find_places


class Doubled(fl.Chain, fl.Adapter[fl.Chain]):
    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Linear(2, 2), target, fl.Multiply(2.0))


class Replaced(fl.Chain, fl.Adapter[fl.Linear]):
    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Identity())


class Emptied(fl.Chain, fl.Adapter[fl.Chain]):
    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Identity())


class BuiltIn(fl.Chain, fl.Adapter[fl.Linear]):
    is_built_in = True

    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(target)


def make() -> fl.Chain:
    return fl.Chain(fl.Linear(2, 3), fl.ReLU(), fl.Chain(fl.Linear(3, 2), fl.Chain(fl.Linear(2, 2), fl.LayerNorm(2))))


def paths(root: fl.Chain) -> dict[str, fl.WeightedModule]:
    return {path: place.layer for path, place in find_places(root).items()}


def test_places_are_those_of_the_state_dict() -> None:
    root = make()
    assert list(paths(root)) == ["Linear", "Chain.Linear", "Chain.Chain.Linear", "Chain.Chain.LayerNorm"]
    assert all(root.get_submodule(path) is layer for path, layer in paths(root).items())
    assert all(layer in (place.parent or ()) for layer, place in ((p.layer, p) for p in find_places(root).values()))


def test_adapters_change_no_place() -> None:
    root = make()
    before = paths(root)
    inner = root.layer(("Chain", "Chain"), fl.Chain)
    outer = root.layer("Chain", fl.Chain)
    lora = LoraAdapter(inner.layer("Linear", fl.Linear), LinearLora("a", 2, 2, 1)).inject(inner)
    Doubled(inner).inject()
    Doubled(outer).inject()
    assert paths(root) == before
    places = find_places(root)
    assert places["Chain.Chain.Linear"].parent is lora
    assert places["Chain.Chain.LayerNorm"].class_names == {"Chain", "Doubled"}


def test_a_layer_that_an_adapter_does_without_has_no_parent() -> None:
    root = make()
    Replaced(root.layer("Linear", fl.Linear)).inject(root)
    place = find_places(root)["Linear"]
    assert place.parent is None and place.class_names == set() and isinstance(place.layer, fl.Linear)
    with pytest.raises(ValueError, match="does not fit the layer Linear"):
        attach_loras([(LinearLora("a", 2, 3, 1), place)])


def test_nor_have_those_of_a_chain_that_an_adapter_does_without() -> None:
    root = make()
    Emptied(root.layer("Chain", fl.Chain)).inject()
    places = find_places(root)
    assert list(places) == list(find_places(make()))
    assert [path for path, place in places.items() if place.parent is not None] == ["Linear"]


def test_adapters_that_belong_to_a_model_are_part_of_paths() -> None:
    root = make()
    BuiltIn(root.layer("Linear", fl.Linear)).inject(root)
    assert next(iter(paths(root))) == "BuiltIn.Linear"


def test_updates_are_attached_all_or_none() -> None:
    root = make()
    x, places = torch.randn(4, 2), find_places(root)
    before, y = dict(root.named_modules()), root(x)
    good = LinearLora("a", 2, 3, 1)
    with pytest.raises(ValueError, match="does not fit the layer Linear"):
        attach_loras([(good, places["Linear"]), (LinearLora("a", 2, 3, 1), places["Chain.Linear"])])
    assert dict(root.named_modules()) == before and torch.equal(root(x), y) and good.parent is None
    attach_loras([(good, places["Linear"])])
    place = find_places(root)["Linear"]
    with pytest.raises(AssertionError, match="LoRA layer with name a already exists"):
        attach_loras([(LinearLora("b", 2, 3, 1), place), (LinearLora("a", 2, 3, 1), place)])
    assert root.layer("LoraAdapter", LoraAdapter).names == ["a"]
