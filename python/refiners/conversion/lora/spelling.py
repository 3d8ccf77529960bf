"""The keys that each format has for the tensors of a layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from refiners.conversion.lora.keys import HADAMARD_ROLES, KRONECKER_ROLES, Role
from refiners.conversion.lora.names import ROOTS, LayerNames, Networks, Part, published_names
from refiners.conversion.lora.numbered import Numbered, place_numbered

LoraFormat: TypeAlias = Literal["kohya", "diffusers", "refiners", "peft"]
"""Who reads the file: kohya-ss/sd-scripts, and with it most programs; diffusers; we ourselves; or PEFT, a folder."""

_LYCORIS = (*HADAMARD_ROLES, *KRONECKER_ROLES, "scalar", "dora_scale", "on_input", "diff", "diff_b", "w_norm", "b_norm")
ENDINGS: Mapping[LoraFormat, Mapping[Role, str]] = {
    "kohya": {
        "down": "lora_down.weight",
        "up": "lora_up.weight",
        "mid": "lora_mid.weight",
        "alpha": "alpha",
        "ia3_w": "weight",
        **{role: role for role in _LYCORIS},
    },
    "diffusers": {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
    "refiners": {"down": "down.weight", "up": "up.weight", "alpha": "alpha"},
    "peft": {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
}
"""How the keys of each format end, by what the tensors are for: a format has no others."""

_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


class Layer(NamedTuple):
    """A layer, whoever names it.

    Attributes:
        part: Its network.
        path: Our name of it; empty for one that ours does without.
        network: The network as diffusers calls it: `"unet"`, `"text_encoder"` or `"text_encoder_2"`.
        name: Its name there.
    """

    part: Part
    path: str
    network: str
    name: str

    @property
    def is_convolution(self) -> bool:
        """Whether its weight has four dimensions."""
        return self.path.rpartition(".")[2].partition("_")[0] == "Conv2d"

    def __str__(self) -> str:
        return f"{self.network}.{self.name}"


def layers_of(networks: Networks) -> dict[tuple[Part, str], Layer]:
    """List the layers of networks by our names of them."""
    return {
        (part, path): Layer(part, path, *published)
        for part, network in networks.items()
        for path, published in published_names(part, network).items()
    }


def spell_layers(layers: Sequence[Layer], networks: Networks, format: LoraFormat) -> list[str]:
    """Give what stands before the endings of the keys of layers, which are all that a file has.

    Args:
        layers: The layers.
        networks: The networks that they are of.
        format: Who is to read the keys. Ours are those of `SDLoraManager.get_lora_weights` where the numbers in them
            tell which layers are meant: where all layers of a class in a chain have updates. Elsewhere they are paths.
    """
    if format == "diffusers":
        return [f"{layer.network}.{layer.name}" for layer in layers]
    if format == "peft":
        return [f"base_model.model.{_name_in_peft(layer)}" for layer in layers]
    if format == "refiners":
        return _spell_ours(layers, networks)
    text = networks.get("text_encoder")
    prefixes = dict(_KOHYA)
    if text is not None and text.component == "clip_text":
        prefixes["text_encoder"] = "lora_te"
    return [f"{prefixes[layer.network]}_{layer.name.replace('.', '_')}" for layer in layers]


def _name_in_peft(layer: Layer) -> str:
    """Give the name of a module: transformers 5 has shorter ones in text encoders without a projection."""
    return layer.name.removeprefix("text_model.") if layer.network == "text_encoder" else layer.name


def _spell_ours(layers: Sequence[Layer], networks: Networks) -> list[str]:
    known = LayerNames(networks).layers
    by_part: defaultdict[Part, list[str]] = defaultdict(list)
    for layer in layers:
        by_part[layer.part].append(layer.path)
    spelled: dict[tuple[Part, str], str] = {}
    for part, paths in by_part.items():
        component = networks[part].component
        root = ROOTS.get(component) if component is not None else None
        for path, name in _number(paths, known[part]).items():
            spelled[part, path] = f"{root or networks[part].root}.{name}"
    return [spelled[layer.part, layer.path] for layer in layers]


def _number(paths: Collection[str], known: Iterable[str]) -> dict[str, str]:
    """Number the layers of each chain, and keep the paths of those for which that says too little."""
    known = list(known)
    wanted = set(paths)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for path in known:
        if path in wanted:
            groups[path.rpartition(".")[0]].append(path)
    numbered: dict[Numbered, str] = {}
    for parent, group in groups.items():
        for number, path in enumerate(group, start=1):
            numbered[Numbered("", parent, number, path.rpartition(".")[2].partition("_")[0])] = path
    meant = place_numbered(dict.fromkeys(numbered, (0, 0)), dict.fromkeys(known))  # by names alone: no shapes
    return {
        path: f"{each.parent}.{each.number}.{each.class_name}".removeprefix(".") if meant[each] == [path] else path
        for each, path in numbered.items()
    }
