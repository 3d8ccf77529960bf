"""Which layer of ours a file means by a name: looked up in lists of all names, never by taking names apart.

A file may write the dots of a name as underscores, so that `down_blocks_0_attentions_0` could be cut in many ways. The
names of all layers of a model are known in each library's spelling; written in one way, they are keys of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Size

from refiners.conversion.formats import Component, Format, Library, formats_of, our_format

Part: TypeAlias = Literal["unet", "text_encoder"]
"""The networks of a model that have updates, by what files call them; both text encoders are one of ours."""

# What stands before the names of the layers of a network, with underscores for dots.
_PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "unet_", "diffusion_model_", "model_diffusion_model_", "lora_unet_unet_", "lycoris_", ""),
    "text_encoder": (
        *("lora_te_", "lora_te1_", "text_encoder_", "te_", "te1_", "clip_l_", "lora_clip_l_", "lycoris_"),
        *("text_encoders_clip_l_transformer_", "cond_stage_model_transformer_", "conditioner_embedders_0_transformer_"),
        "",
    ),
    "text_encoder_2": (
        *("lora_te2_", "text_encoder_2_", "te2_", "clip_g_", "lora_clip_g_", "lycoris_"),
        *("text_encoders_clip_g_transformer_", "conditioner_embedders_1_model_"),
        "",
    ),
}
# In the names of formats, what says which of two text encoders is meant.
_SUBMODELS = {
    "text_encoder/": "text_encoder",
    "text_encoder_2/": "text_encoder_2",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
_ALIASES = (  # of old files of diffusers, which adapted attention as a whole
    ("_to_out_0", "_to_out"),
    *((f"_self_attn_{part}_proj", f"_self_attn_to_{part}") for part in ("q", "k", "v", "out")),
)
ROOTS: dict[Component, str] = {
    "unet_sd1": "SD1UNet",
    "unet_sdxl": "SDXLUNet",
    "clip_text": "CLIPTextEncoderL",
    "double_text_encoder": "DoubleTextEncoder",
}
UNUSED = "the model does without this layer"


class Known(NamedTuple):
    """The layer that a name means.

    Attributes:
        part: The network.
        path: Our name of the layer in it; empty for a layer that ours does without.
        library: Whose name it is.
        published: For a layer that ours does without, the network and the name that diffusers has for it.
    """

    part: Part
    path: str
    library: Library | Literal[""]
    published: tuple[str, str] | None = None


@dataclass(frozen=True)
class Network:
    """A network whose layers may have updates.

    Attributes:
        component: What kind of model it is; `None` for one of no kind that has other names than ours.
        layout: Its structure.
        shapes: The shape of the weight of each layer by its path, where they are known.
        root: The name of its class, with which paths may begin.
    """

    component: Component | None
    layout: Any
    shapes: Mapping[str, Size] | None = field(default=None, repr=False)
    root: str = ""


Networks: TypeAlias = Mapping[Part, Network]


class LayerNames:
    """The names that layers of a model may have in files.

    Args:
        networks: The networks of the model.

    Attributes:
        roots: The names of the classes of each network, with which paths may begin.
        layers: The paths of its layers.
    """

    def __init__(self, networks: Networks) -> None:
        self._tables: list[tuple[str, Mapping[str, Known]]] = []
        self.roots: dict[Part, list[str]] = {}
        self.layers: dict[Part, list[str]] = {}
        for part, network in networks.items():
            roots = [network.root] + ([ROOTS[network.component]] if network.component in ROOTS else [])
            self.roots[part] = [root for root in dict.fromkeys(roots) if root]
            own = {_written(path): Known(part, path, "refiners") for path in network.shapes or ()}
            tables: Mapping[str, Mapping[str, Known]] = {part: own}
            if network.component is not None:
                tables = _tables(part, network.component, network.layout)
            for submodel, table in tables.items():
                self._tables += [(prefix, table) for prefix in _PREFIXES[submodel]]
            ours = own or {key: known for table in tables.values() for key, known in table.items() if known.path}
            self._tables += [(f"{_written(root)}_", ours) for root in self.roots[part]]
            self.layers[part] = list(dict.fromkeys(known.path for known in ours.values()))

    def find(self, name: str) -> list[Known]:
        """Find the layers that a name may mean: none, one, or several where it is ambiguous."""
        written = _written(name.removeprefix("base_model.model.")).replace("_processor_", "_")
        found: dict[tuple[Part, str], Known] = {}
        for prefix, table in self._tables:
            if written.startswith(prefix) and (known := table.get(written[len(prefix) :])):
                found.setdefault((known.part, known.path), known)
        return list(found.values())


def _written(name: str) -> str:
    return name.replace(".", "_")


@cache
def _tables(part: Part, component: Component, layout: Any) -> Mapping[str, Mapping[str, Known]]:
    """Write down all names of the layers of a network, those of each text encoder apart."""
    ours = [name.layer for name in our_format(component).names(layout)]
    unused = [_split_submodel(part, name) for name in _unused(_published_format(part, component), layout)]
    tables: dict[str, dict[str, Known]] = {"unet": {}} if part == "unet" else {"text_encoder": {}, "text_encoder_2": {}}
    for each in formats_of(component):
        theirs = zip(ours, each.names(layout), strict=True)
        # Where one tensor holds several layers of ours, no update of it is one of theirs.
        named = [(path, name.layer, None) for path, name in theirs if name.part is None]
        rest = [("", name, published) for name, published in zip(_unused(each, layout), unused)]
        for path, name, published in (*named, *rest):
            submodel, inner = _split_submodel(part, name)
            for key in _spellings(_written(inner)):
                tables[submodel].setdefault(key, Known(part, path, each.library, published))
    return tables


def published_names(part: Part, network: Network) -> dict[str, tuple[str, str]]:
    """Give the names of the layers of a network in diffusers and transformers, by our paths.

    Returns:
        The network as diffusers calls it, `"unet"`, `"text_encoder"` or `"text_encoder_2"`, and the name in it.
    """
    if network.component is None:
        return {}
    theirs = _published_format(part, network.component)
    ours = [name.layer for name in our_format(network.component).names(network.layout)]
    named = zip(ours, theirs.names(network.layout), strict=True)
    return {path: _split_submodel(part, name.layer) for path, name in named}


def _published_format(part: Part, component: Component) -> Format:
    library = "diffusers" if part == "unet" else "transformers"
    return next(each for each in formats_of(component) if each.library == library)


def _unused(each: Format, layout: Any) -> Iterator[str]:
    yield from (name.layer for name in each.unused(layout) if name.part is None)
    if each.component == "clip_text" and not layout.projection:
        yield "text_projection"


def _split_submodel(part: Part, name: str) -> tuple[str, str]:
    for prefix, submodel in _SUBMODELS.items():
        if name.startswith(prefix):
            return submodel, name.removeprefix(prefix)
    return part, name


def _spellings(written: str) -> Iterator[str]:
    yield written
    for ending, alias in _ALIASES:
        if written.endswith(ending):
            yield written.removesuffix(ending) + alias
