"""The networks that updates are for: those of a model, of a checkpoint, or the published ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Size

from refiners.conversion.detection import Found
from refiners.conversion.diffusion import Family, OpenedSources, family_of
from refiners.conversion.formats import Component, our_format
from refiners.conversion.lora.kinds import Kind
from refiners.conversion.lora.names import Network, Networks, Part
from refiners.conversion.naming.clip import CLIP_L, SDXL_TEXT
from refiners.conversion.naming.unet import SD15, SDXL
from refiners.fluxion.adapters.lora.places import Place, find_places
from refiners.fluxion.layers import Chain
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

COMPONENTS: Mapping[Part, tuple[Component, ...]] = {
    "unet": ("unet_sd1", "unet_sdxl"),
    "text_encoder": ("clip_text", "double_text_encoder"),
}
PUBLISHED: Mapping[Family, Networks] = {
    "sd1": {"unet": Network("unet_sd1", SD15), "text_encoder": Network("clip_text", CLIP_L)},
    "sdxl": {"unet": Network("unet_sdxl", SDXL), "text_encoder": Network("double_text_encoder", SDXL_TEXT)},
}
"""The networks of published models: names without shapes."""


class Targets(NamedTuple):
    """The networks of a model.

    Attributes:
        networks: What is known of them.
        places: The places of their layers, by their paths.
        doubtful: The paths that adapters may have moved to other layers.
    """

    networks: Networks
    places: Mapping[Part, Mapping[str, Place]]
    doubtful: Mapping[Part, Collection[str]]

    def layer_problem(self, kind: Kind, part: Part, path: str) -> str | None:
        """Say why a layer can have no update of a kind, if so."""
        place = self.places[part][path]
        if place.parent is None:
            return "an adapter has replaced the layer, and does without it"
        if path in self.doubtful[part]:
            return "an adapter has added layers beside it, so that its name may mean another one: eject that first"
        return kind.layer_problem(place.layer)


def targets_of(model: LatentDiffusionModel) -> Targets:
    """Find the layers of a model, whatever adapters are in it."""
    roots: dict[Part, Chain] = {"unet": model.unet, "text_encoder": model.clip_text_encoder}
    places: dict[Part, dict[str, Place]] = {part: find_places(root) for part, root in roots.items()}
    networks: dict[Part, Network] = {part: _network(part, root, places[part]) for part, root in roots.items()}
    return Targets(networks, places, {part: _doubtful(network, places[part]) for part, network in networks.items()})


def _doubtful(network: Network, places: Mapping[str, Place]) -> Collection[str]:
    """Find the paths that may not be those of the layers that had them when the model was built.

    Layers have numbers among those of their class in a chain, as chains have: whatever is inserted counts, too.
    """
    if network.component is None:
        return ()
    built = _paths(network.component, network.layout)
    added = places.keys() - built
    if not added:
        return ()
    if not built <= places.keys():  # a chain was inserted, and those after it have other numbers
        return places.keys()
    classes = {_class_in_chain(path) for path in added}
    return [path for path in built if _class_in_chain(path) in classes]


def _class_in_chain(path: str) -> tuple[str, str]:
    parent, _, own = path.rpartition(".")
    return parent, own.partition("_")[0]


@cache
def _paths(component: Component, layout: Any) -> Set[str]:
    return frozenset(name.layer for name in our_format(component).names(layout))


def _network(part: Part, root: Chain, places: Mapping[str, Place]) -> Network:
    shapes = {path: place.layer.weight.shape for path, place in places.items()}
    keys = {f"{path}.weight": shape for path, shape in shapes.items()}
    for component in COMPONENTS[part]:
        layout = our_format(component).layout(keys)
        if layout is not None:
            return Network(component, layout, shapes, type(root).__name__)
    return Network(None, None, shapes, type(root).__name__)


def targets_in(path: Path | str) -> tuple[Family | None, Networks]:
    """Find the networks of a checkpoint by the names and shapes of its tensors.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it holds neither a U-Net nor a text encoder.
    """
    opened = OpenedSources(Path(path))
    try:
        found: dict[Component, Found] = {each.component: each for each in opened.find()}
    finally:
        opened.close()
    networks: dict[Part, Network] = {}
    for part, components in COMPONENTS.items():
        for component in components:
            if component in found:
                networks[part] = Network(component, found[component].layout, _weights(found[component].shapes))
    if not networks:
        raise ValueError(f"{path} holds neither a U-Net nor a text encoder of Stable Diffusion 1.5 or XL")
    return family_of(found), networks


def _weights(shapes: Mapping[str, Size]) -> dict[str, Size]:
    return {key.removesuffix(".weight"): shape for key, shape in shapes.items() if key.endswith(".weight")}
