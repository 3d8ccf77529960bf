"""The image encoders of CLIP and OpenCLIP."""

from __future__ import annotations

from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.common import PositionalEncoder, make_transformer_sublayers


class ClassToken(fl.Chain):
    """A learned embedding, the same for each image, whose features become those of the image.

    See [[arXiv:2010.11929] An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), section 3.1.

    Args:
        embedding_dim: The number of its components.
        device: Where to create it.
        dtype: Its dtype.

    Receives:
        x (Shaped[Tensor, "batch ..."]): Anything of the right batch size.

    Returns:
        Float[Tensor, "batch 1 embedding_dim"]: The embedding.
    """

    def __init__(self, embedding_dim: int, device: Device | str | None = None, dtype: DType | None = None) -> None:
        self.embedding_dim = embedding_dim
        super().__init__(fl.Parameter(1, embedding_dim, device=device, dtype=dtype))


class PatchEncoder(fl.Chain):
    """Embed the square patches of an image, each by itself.

    See [[arXiv:2010.11929] An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), section 3.1.

    Args:
        in_channels: The number of channels of the image.
        out_channels: The number of components of an embedding.
        patch_size: The side of a patch, in pixels. What does not fill a patch at the right and the bottom is left out.
        use_bias: Whether the embedding has a bias.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels height width"]): The image.

    Returns:
        Float[Tensor, "batch height//patch_size width//patch_size out_channels"]: The embeddings.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int = 16,
        use_bias: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.patch_size = patch_size
        self.use_bias = use_bias
        super().__init__(
            fl.Conv2d(
                in_channels,
                out_channels,
                kernel_size=(patch_size, patch_size),
                stride=(patch_size, patch_size),
                use_bias=use_bias,
                device=device,
                dtype=dtype,
            ),
            fl.Permute(0, 2, 3, 1),
        )


class TransformerLayer(fl.Chain):
    """Pre-normalized self-attention, then a pre-normalized feed-forward block.

    See [[arXiv:2010.11929] An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), equations 2 and 3.

    Args:
        embedding_dim: The number of features.
        feedforward_dim: The inner number of features of the feed-forward block.
        num_attention_heads: The number of heads.
        layer_norm_eps: Added to the variance in normalizations.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch length embedding_dim"]): The sequence.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: The result.

    Raises:
        AssertionError: If `embedding_dim` is not divisible by `num_attention_heads`.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        feedforward_dim: int = 3072,
        num_attention_heads: int = 12,
        layer_norm_eps: float = 1e-5,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.feedforward_dim = feedforward_dim
        self.num_attention_heads = num_attention_heads
        self.layer_norm_eps = layer_norm_eps
        sizes = (embedding_dim, feedforward_dim, num_attention_heads, layer_norm_eps)
        super().__init__(make_transformer_sublayers(*sizes, is_causal=False, device=device, dtype=dtype))


class ViTEmbeddings(fl.Chain):
    """The class token, then the patches of an image, with their positions.

    See [[arXiv:2010.11929] An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), equation 1.

    Args:
        image_size: The side of the image, in pixels.
        embedding_dim: The number of components of an embedding.
        patch_size: The side of a patch, in pixels.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch 3 image_size image_size"]): The image.

    Returns:
        Float[Tensor, "batch (image_size//patch_size)**2+1 embedding_dim"]: The embeddings.
    """

    def __init__(
        self,
        image_size: int = 224,
        embedding_dim: int = 768,
        patch_size: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.patch_size = patch_size
        num_patches = (image_size // patch_size) ** 2
        super().__init__(
            fl.Concatenate(
                ClassToken(embedding_dim, device=device, dtype=dtype),
                fl.Chain(
                    PatchEncoder(
                        in_channels=3,
                        out_channels=embedding_dim,
                        patch_size=patch_size,
                        use_bias=False,
                        device=device,
                        dtype=dtype,
                    ),
                    fl.Reshape(num_patches, embedding_dim),
                ),
                dim=1,
            ),
            fl.Residual(
                PositionalEncoder(num_patches + 1, embedding_dim, device=device, dtype=dtype),
            ),
        )


class CLIPImageEncoder(fl.Chain):
    """Encode images in the space that CLIP shares between images and texts.

    See [[arXiv:2103.00020] Learning Transferable Visual Models From Natural Language
    Supervision](https://arxiv.org/abs/2103.00020), section 2.4.

    The last three children select the features of the class token, normalize and project them. Without them, the result
    is the features of all tokens.

    Args:
        image_size: The side of the image, in pixels.
        embedding_dim: The number of features.
        output_dim: The number of components of the result.
        patch_size: The side of a patch, in pixels.
        num_layers: The number of layers.
        num_attention_heads: The number of heads.
        feedforward_dim: The inner number of features of the feed-forward blocks.
        layer_norm_eps: Added to the variance in normalizations.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch 3 image_size image_size"]): Images with normalized channels.

    Returns:
        Float[Tensor, "batch output_dim"]: Their embeddings, not normalized.

    Raises:
        AssertionError: If `embedding_dim` is not divisible by `num_attention_heads`.
    """

    def __init__(
        self,
        image_size: int = 224,
        embedding_dim: int = 768,
        output_dim: int = 512,
        patch_size: int = 32,
        num_layers: int = 12,
        num_attention_heads: int = 12,
        feedforward_dim: int = 3072,
        layer_norm_eps: float = 1e-5,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.output_dim = output_dim
        self.patch_size = patch_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.feedforward_dim = feedforward_dim
        self.layer_norm_eps = layer_norm_eps
        super().__init__(
            ViTEmbeddings(image_size, embedding_dim, patch_size, device=device, dtype=dtype),
            fl.LayerNorm(embedding_dim, eps=layer_norm_eps, device=device, dtype=dtype),
            fl.Chain(
                TransformerLayer(
                    embedding_dim=embedding_dim,
                    feedforward_dim=feedforward_dim,
                    num_attention_heads=num_attention_heads,
                    layer_norm_eps=layer_norm_eps,
                    device=device,
                    dtype=dtype,
                )
                for _ in range(num_layers)
            ),
            fl.Lambda(_class_token),
            fl.LayerNorm(embedding_dim, eps=layer_norm_eps, device=device, dtype=dtype),
            fl.Linear(embedding_dim, output_dim, bias=False, device=device, dtype=dtype),
        )


def _class_token(x: Tensor) -> Tensor:
    return x[:, 0, :]


class CLIPImageEncoderH(CLIPImageEncoder):
    """The image encoder of OpenCLIP ViT-H/14: 32 layers of 1280 features, as used by the IP-Adapters.

    Args:
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(self, device: Device | str | None = None, dtype: DType | None = None) -> None:
        super().__init__(
            embedding_dim=1280,
            output_dim=1024,
            patch_size=14,
            num_layers=32,
            num_attention_heads=16,
            feedforward_dim=5120,
            device=device,
            dtype=dtype,
        )


class CLIPImageEncoderG(CLIPImageEncoder):
    """The image encoder of OpenCLIP ViT-bigG/14: 48 layers of 1664 features.

    Args:
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(self, device: Device | str | None = None, dtype: DType | None = None) -> None:
        super().__init__(
            embedding_dim=1664,
            output_dim=1280,
            patch_size=14,
            num_layers=48,
            num_attention_heads=16,
            feedforward_dim=8192,
            device=device,
            dtype=dtype,
        )
