"""The names of the layers of the CLIP encoders, and of the two text encoders of Stable Diffusion XL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refiners.conversion.naming.names import Name, Shapes, numbered


@dataclass(frozen=True)
class CLIPLayout:
    """The structure of a CLIP encoder of texts or images.

    Attributes:
        layers: The number of transformer layers.
        projection: Whether it ends with a projection.
        dim: The dimension of its embeddings; 0 where it does not matter.
    """

    layers: int
    projection: bool = False
    dim: int = 0


@dataclass(frozen=True)
class DoubleTextLayout:
    """The structure of the two text encoders of Stable Diffusion XL: the transformer layers of each.

    The last layer of the first encoder is not counted, and not used: its last but one gives the embeddings.
    """

    layers: int
    layers_2: int
    dim: int = 0
    dim_2: int = 0


CLIP_L = CLIPLayout(layers=12)
CLIP_H_IMAGE = CLIPLayout(layers=32, projection=True)
SDXL_TEXT = DoubleTextLayout(layers=11, layers_2=32)


class CLIPNames(ABC):
    """What a library calls the layers of a CLIP encoder.

    Attributes:
        before: What comes before the transformer layers.
        norm: The last normalization.
        projection: The projection after it.
    """

    before: Sequence[Name]
    norm: Name
    projection: Name

    def __init__(self, layers: int) -> None:
        self.layers = layers

    @abstractmethod
    def layer(self, index: int) -> list[Name]:
        """List the layers of a transformer layer: norm, queries, keys, values, output, norm, and two linear layers."""


class _TransformersLayers(CLIPNames):
    encoder: str

    def layer(self, index: int) -> list[Name]:
        parts = ["layer_norm1", *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out"))]
        parts += ["layer_norm2", "mlp.fc1", "mlp.fc2"]
        return [Name(f"{self.encoder}encoder.layers.{index}.{part}") for part in parts]


class TransformersText(_TransformersLayers):
    """The names of `CLIPTextModel` and `CLIPTextModelWithProjection` of transformers."""

    encoder = "text_model."
    projection = Name("text_projection")

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        embeddings = f"{self.encoder}embeddings"
        self.before = [Name(f"{embeddings}.token_embedding"), Name(f"{embeddings}.position_embedding")]
        self.norm = Name(f"{self.encoder}final_layer_norm")


class BareTransformersText(TransformersText):
    """The same without `text_model.`, as newer versions save the first of the two."""

    encoder = ""


class TransformersImage(_TransformersLayers):
    """The names of `CLIPVisionModelWithProjection` of transformers."""

    encoder = "vision_model."
    projection = Name("visual_projection")

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.before = [
            Name.bare(f"{self.encoder}embeddings.class_embedding"),
            Name(f"{self.encoder}embeddings.patch_embedding"),
            Name(f"{self.encoder}embeddings.position_embedding"),
            Name(f"{self.encoder}pre_layrnorm"),  # so it is spelled
        ]
        self.norm = Name(f"{self.encoder}post_layernorm")


class _OpenCLIPLayers(CLIPNames):
    tower: str = ""

    def layer(self, index: int) -> list[Name]:
        block = f"{self.tower}transformer.resblocks.{index}"
        return [
            Name(f"{block}.ln_1"),
            *(Name.third(f"{block}.attn.in_proj", part) for part in range(3)),
            *(Name(f"{block}.{part}") for part in ("attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")),
        ]


class OpenCLIPText(_OpenCLIPLayers):
    """The names of OpenCLIP's text encoder, whose projection multiplies from the left."""

    before = (Name("token_embedding"), Name.bare("positional_embedding"))
    norm = Name("ln_final")
    projection = Name.bare("text_projection", transposed=True)


class OpenCLIPImage(_OpenCLIPLayers):
    """The names of OpenCLIP's image encoder, whose projection multiplies from the left."""

    tower = "visual."
    before = (
        Name.bare("visual.class_embedding"),
        Name("visual.conv1"),
        Name.bare("visual.positional_embedding"),
        Name("visual.ln_pre"),
    )
    norm = Name("visual.ln_post")
    projection = Name.bare("visual.proj", transposed=True)


def _refiners_layer(layer: str) -> list[Name]:
    return [
        Name(f"{layer}.Residual_1.LayerNorm"),
        *(Name(f"{layer}.Residual_1.SelfAttention.Distribute.Linear_{i}") for i in (1, 2, 3)),
        Name(f"{layer}.Residual_1.SelfAttention.Linear"),
        Name(f"{layer}.Residual_2.LayerNorm"),
        Name(f"{layer}.Residual_2.FeedForward.Linear_1"),
        Name(f"{layer}.Residual_2.FeedForward.Linear_2"),
    ]


class RefinersText(CLIPNames):
    """The names of our text encoders."""

    before = (Name("Sum.TokenEncoder"), Name("Sum.PositionalEncoder.Embedding"))
    norm = Name("LayerNorm")
    projection = Name("Linear")

    def layer(self, index: int) -> list[Name]:
        return _refiners_layer(numbered("TransformerLayer", index, self.layers))


class RefinersImage(CLIPNames):
    """The names of our image encoders."""

    before = (
        Name("ViTEmbeddings.Concatenate.ClassToken.Parameter"),
        Name("ViTEmbeddings.Concatenate.Chain.PatchEncoder.Conv2d"),
        Name("ViTEmbeddings.Residual.PositionalEncoder.Embedding"),
        Name("LayerNorm_1"),
    )
    norm = Name("LayerNorm_2")
    projection = Name("Linear")

    def layer(self, index: int) -> list[Name]:
        return _refiners_layer(f"Chain.{numbered('TransformerLayer', index, self.layers)}")


def _encoder_names(library: CLIPNames) -> Iterator[Name]:
    yield from library.before
    for index in range(library.layers):
        yield from library.layer(index)


def clip_names(layout: CLIPLayout, make: type[CLIPNames]) -> list[Name]:
    """List the layers of a CLIP encoder, in the same order for every library."""
    library = make(layout.layers)
    return [*_encoder_names(library), library.norm, *([library.projection] if layout.projection else [])]


def clip_layout(shapes: Shapes, make: type[CLIPNames]) -> CLIPLayout | None:
    """Read the structure of a CLIP encoder off the keys of a file; None if they are not those of this library."""
    layers = _count_layers(shapes, make)
    before = [name.key("weight") for name in make(layers).before]
    if layers == 0 or not all(key in shapes for key in before):
        return None
    projection = make(layers).projection.key("weight") in shapes
    return CLIPLayout(layers, projection=projection, dim=shapes[before[-1]][-1])


def _count_layers(shapes: Shapes, make: type[CLIPNames]) -> int:
    layers = 0
    while make(2).layer(layers)[0].key("weight") in shapes:
        layers += 1
    # Ours have no number where there is one alone.
    return layers or int(make(1).layer(0)[0].key("weight") in shapes)


class DoubleTextNames:
    """What a library calls the two text encoders of Stable Diffusion XL: each below a prefix, with its own names."""

    def __init__(self, first: type[CLIPNames], prefix: str, second: type[CLIPNames], prefix_2: str) -> None:
        self.first, self.prefix = first, prefix
        self.second, self.prefix_2 = second, prefix_2

    def names(self, layout: DoubleTextLayout) -> list[Name]:
        """List the layers of both, in the same order for every library."""
        first, second = self.first(layout.layers + 1), self.second(layout.layers_2)
        return [
            *(name.under(self.prefix) for name in first.before),
            *(name.under(self.prefix) for index in range(layout.layers) for name in first.layer(index)),
            *(name.under(self.prefix_2) for name in _encoder_names(second)),
            *(name.under(self.prefix_2) for name in (second.norm, second.projection)),
        ]

    def layout(self, shapes: Shapes) -> DoubleTextLayout | None:
        """Read the structure off the keys of a file; None if they are not those of this library."""
        first = clip_layout(_below(shapes, self.prefix), self.first)
        second = clip_layout(_below(shapes, self.prefix_2), self.second)
        if first is None or second is None:
            return None
        return DoubleTextLayout(first.layers - 1, second.layers, first.dim, second.dim)

    def unused(self, layout: DoubleTextLayout) -> list[Name]:
        """List the layers that Stable Diffusion XL does not use: the last of the first encoder, and its norm."""
        first = self.first(layout.layers + 1)
        return [name.under(self.prefix) for name in (*first.layer(layout.layers), first.norm, first.projection)]


class RefinersDoubleText(DoubleTextNames):
    """The names of our `DoubleTextEncoder`: the last layer of the second encoder is in the branch of its pooling."""

    def __init__(self) -> None:
        super().__init__(RefinersText, "Parallel.CLIPTextEncoderL.", RefinersText, "Parallel.TextEncoderWithPooling.")

    def names(self, layout: DoubleTextLayout) -> list[Name]:
        first, second = RefinersText(layout.layers), RefinersText(layout.layers_2 - 1)
        encoder, pooling = f"{self.prefix_2}CLIPTextEncoderG.", f"{self.prefix_2}Parallel.Chain."
        return [
            *(name.under(self.prefix) for name in _encoder_names(first)),
            *(name.under(encoder) for name in _encoder_names(second)),
            *(name.under(f"{pooling}CLIPTextEncoderG.") for name in _refiners_layer("TransformerLayer")),
            second.norm.under(f"{pooling}CLIPTextEncoderG."),
            second.projection.under(pooling),
        ]

    def layout(self, shapes: Shapes) -> DoubleTextLayout | None:
        first = clip_layout(_below(shapes, self.prefix), RefinersText)
        second = clip_layout(_below(shapes, f"{self.prefix_2}CLIPTextEncoderG."), RefinersText)
        if first is None or second is None or f"{self.prefix_2}Parallel.Chain.Linear.weight" not in shapes:
            return None
        return DoubleTextLayout(first.layers, second.layers + 1, first.dim, second.dim)

    def unused(self, layout: DoubleTextLayout) -> list[Name]:
        return []


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
