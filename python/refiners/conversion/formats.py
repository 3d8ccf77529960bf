"""What the files of each library look like: for each kind of model, every way in which its tensors are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

from refiners.conversion.naming import adapters
from refiners.conversion.naming.autoencoder import (
    AutoencoderNames,
    DiffusersAutoencoder,
    LDMAutoencoder,
    OldDiffusersAutoencoder,
    RefinersAutoencoder,
    autoencoder_layout,
    autoencoder_names,
)
from refiners.conversion.naming.clip import (
    BareTransformersText,
    CLIPNames,
    DoubleTextNames,
    OpenCLIPImage,
    OpenCLIPText,
    RefinersDoubleText,
    RefinersImage,
    RefinersText,
    TransformersImage,
    TransformersText,
    clip_layout,
    clip_names,
)
from refiners.conversion.naming.control import (
    ControlNames,
    DiffusersControl,
    LDMControl,
    RefinersControl,
    controlnet_layout,
    controlnet_names,
)
from refiners.conversion.naming.names import Name, Shapes, names
from refiners.conversion.naming.unet import (
    SD15,
    SDXL,
    DiffusersUNet,
    LDMUNet,
    RefinersSDXLUNet,
    RefinersUNet,
    UNetLayout,
    UNetNames,
    unet_layout,
    unet_names,
)

Component: TypeAlias = Literal[
    "unet_sd1",
    "unet_sdxl",
    "autoencoder",
    "clip_text",
    "clip_image",
    "double_text_encoder",
    "controlnet_sd1",
    "t2i_adapter",
    "ip_adapter_sd1",
    "ip_adapter_plus_sd1",
    "ip_adapter_sdxl",
    "ip_adapter_plus_sdxl",
    "informative_drawings",
]
"""The kinds of models whose weights can be read."""

Library: TypeAlias = Literal["refiners", "diffusers", "transformers", "ldm", "open_clip", "original"]
"""Who names the tensors; `ldm` is the original implementation of latent diffusion, with one file for a pipeline."""

COMPONENTS: tuple[Component, ...] = get_args(Component)


@dataclass(frozen=True)
class Format:
    """How a library names the tensors of one kind of model.

    Attributes:
        component: The kind of model.
        library: The library.
        layout: Reads the structure of a model off the shapes of its tensors; None if they are not in this format.
        names: Lists the layers of a model of some structure, in the same order in every format of the component.
        prefix: What stands before the names; keys without it belong to other models.
        unused: Lists the layers in such files that ours does not have.
        extras: Matches other keys that may be there and are not used.
    """

    component: Component
    library: Library
    layout: Callable[[Shapes], Any]
    names: Callable[[Any], list[Name]]
    prefix: str = ""
    unused: Callable[[Any], list[Name]] = lambda layout: []
    extras: str = "(?!)"

    def __str__(self) -> str:
        return f"{self.library} (prefix {self.prefix})" if self.prefix else self.library

    def below(self, shapes: Shapes) -> Shapes:
        """Return the keys with the prefix, without it."""
        if not self.prefix:
            return shapes
        return {key.removeprefix(self.prefix): shape for key, shape in shapes.items() if key.startswith(self.prefix)}

    def is_extra(self, key: str, layout: Any) -> bool:
        """Tell whether a key, without the prefix, may be left over."""
        return re.search(self.extras, key) is not None or key in {
            name.key(kind) for name in self.unused(layout) for kind in ("weight", "bias")
        }


def _unet(component: Component, library: Library, make: type[UNetNames], prefix: str = "") -> Format:
    def layout(shapes: Shapes) -> UNetLayout | None:
        found = unet_layout(shapes, make)
        return found if found is not None and found.text_time == (component == "unet_sdxl") else None

    return Format(component, library, layout, lambda layout: unet_names(layout, make), prefix)


def _autoencoder(library: Library, make: type[AutoencoderNames], prefix: str = "") -> Format:
    return Format(
        "autoencoder",
        library,
        lambda shapes: autoencoder_layout(shapes, make),
        lambda layout: autoencoder_names(layout, make),
        prefix,
        extras=r"^(loss|model_ema)\.",  # of its training
    )


def _clip(component: Component, library: Library, make: type[CLIPNames], prefix: str = "") -> Format:
    # Files may hold both encoders of CLIP, a projection that is not used, and indices that can be computed.
    other = (
        r"^(vision_model|visual_projection|visual)\b"
        if component == "clip_text"
        else (r"^(text_model|text_projection|transformer|token_embedding|positional_embedding|ln_final|attn_mask)\b")
    )
    return Format(
        component,
        library,
        lambda shapes: clip_layout(shapes, make),
        lambda layout: clip_names(layout, make),
        prefix,
        extras=rf"{other}|\bposition_ids$|^logit_scale$|^text_projection\b|^attn_mask$",
    )


def _double(
    library: Library, first: type[CLIPNames], prefix: str, second: type[CLIPNames], prefix_2: str
) -> Iterator[Format]:
    both = DoubleTextNames(first, prefix, second, prefix_2)
    other = rf"^(?!{re.escape(prefix)}|{re.escape(prefix_2)})"  # the other models of the pipeline
    extras = rf"{other}|\bposition_ids$|[./]logit_scale$"
    yield Format("double_text_encoder", library, both.layout, both.names, "", both.unused, extras)


def _control(library: Library, make: type[ControlNames], prefix: str = "") -> Format:
    return Format(
        "controlnet_sd1",
        library,
        lambda shapes: controlnet_layout(shapes, make),
        lambda layout: controlnet_names(layout, make),
        prefix,
    )


def _fixed(component: Component, library: Library, keys: Mapping[str, str]) -> Iterator[Format]:
    """Make the formats of a kind of model whose structure is always the same, theirs and ours."""
    theirs = [Name.bare(source) if target.endswith(".weight") else Name(source) for source, target in keys.items()]
    ours = names(target.removesuffix(".weight") for target in keys.values())

    def format_of(library: Library, layers: list[Name]) -> Format:
        required = {name.key("weight") for name in layers}
        numbers = {key.rpartition(".to_k_ip")[0] for key in required if ".to_k_ip" in key}

        def layout(shapes: Shapes) -> bool | None:
            # The attentions of Stable Diffusion 1.5 are among those of XL.
            more = any(key.rpartition(".to_k_ip")[0] not in numbers for key in shapes if ".to_k_ip" in key)
            return True if not more and all(key in shapes for key in required) else None

        return Format(component, library, layout, lambda layout: layers)

    yield format_of("refiners", ours)
    yield format_of(library, theirs)


def _all_formats() -> Iterator[Format]:
    diffusion = "model.diffusion_model."
    unets: list[tuple[Component, type[UNetNames]]] = [("unet_sd1", RefinersUNet), ("unet_sdxl", RefinersSDXLUNet)]
    for component, ours in unets:
        yield _unet(component, "refiners", ours)
        yield _unet(component, "diffusers", DiffusersUNet)
        yield from (_unet(component, "ldm", LDMUNet, prefix) for prefix in (diffusion, ""))

    yield _autoencoder("refiners", RefinersAutoencoder)
    yield from (_autoencoder("diffusers", make) for make in (DiffusersAutoencoder, OldDiffusersAutoencoder))
    yield from (_autoencoder("ldm", LDMAutoencoder, prefix) for prefix in ("first_stage_model.", ""))

    yield _clip("clip_text", "refiners", RefinersText)
    for prefix in ("", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
        library = "ldm" if prefix else "transformers"
        yield from (_clip("clip_text", library, make, prefix) for make in (TransformersText, BareTransformersText))
    for prefix in ("", "cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model."):
        yield _clip("clip_text", "ldm" if prefix else "open_clip", OpenCLIPText, prefix)

    yield _clip("clip_image", "refiners", RefinersImage)
    yield _clip("clip_image", "transformers", TransformersImage)
    yield _clip("clip_image", "open_clip", OpenCLIPImage)

    both = RefinersDoubleText()
    yield Format("double_text_encoder", "refiners", both.layout, both.names)
    for first in (TransformersText, BareTransformersText):
        yield from _double("transformers", first, "text_encoder/", TransformersText, "text_encoder_2/")
        yield from _double(
            "ldm", first, "conditioner.embedders.0.transformer.", OpenCLIPText, "conditioner.embedders.1.model."
        )

    yield _control("refiners", RefinersControl)
    yield _control("diffusers", DiffusersControl)
    yield from (_control("ldm", LDMControl, prefix) for prefix in ("control_model.", ""))

    yield from _fixed("t2i_adapter", "diffusers", adapters.t2i_adapter_keys())
    yield from _fixed("ip_adapter_sd1", "original", adapters.ip_adapter_keys(SD15))
    yield from _fixed("ip_adapter_plus_sd1", "original", adapters.ip_adapter_plus_keys(SD15))
    yield from _fixed("ip_adapter_sdxl", "original", adapters.ip_adapter_keys(SDXL))
    yield from _fixed("ip_adapter_plus_sdxl", "original", adapters.ip_adapter_plus_keys(SDXL))
    yield from _fixed("informative_drawings", "original", adapters.informative_drawings_keys())


@cache
def formats_of(component: Component) -> tuple[Format, ...]:
    """List the formats of a kind of model; ours is the first."""
    return tuple(each for each in _all_formats() if each.component == component)


def our_format(component: Component) -> Format:
    """Return the format in which our models save themselves."""
    return formats_of(component)[0]
