"""The text encoders of CLIP and OpenCLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from torch import device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.common import PositionalEncoder, make_transformer_sublayers
from refiners.foundationals.clip.tokenizer import CLIPTokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CLIPTextEncoderSizes(TypedDict, total=False):
    """What a `CLIPTextEncoder` of another size than a published one is built with."""

    embedding_dim: int
    max_sequence_length: int
    vocabulary_size: int
    num_layers: int
    num_attention_heads: int
    feedforward_dim: int
    use_quick_gelu: bool


class TokenEncoder(fl.Embedding):
    """Learned embeddings of tokens.

    Args:
        vocabulary_size: The number of tokens.
        embedding_dim: The number of components of each embedding.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Int[Tensor, "batch length"]): The ids of tokens.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: Their embeddings.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.vocabulary_size = vocabulary_size
        super().__init__(vocabulary_size, embedding_dim, device=device, dtype=dtype)


class TransformerLayer(fl.Chain):
    """Pre-normalized causal self-attention, then a pre-normalized feed-forward block.

    See [[arXiv:2103.00020] Learning Transferable Visual Models From Natural Language
    Supervision](https://arxiv.org/abs/2103.00020), section 2.4.

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
        embedding_dim: int,
        feedforward_dim: int,
        num_attention_heads: int = 1,
        layer_norm_eps: float = 1e-5,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.num_attention_heads = num_attention_heads
        self.feedforward_dim = feedforward_dim
        self.layer_norm_eps = layer_norm_eps
        sizes = (embedding_dim, feedforward_dim, num_attention_heads, layer_norm_eps)
        super().__init__(make_transformer_sublayers(*sizes, is_causal=True, device=device, dtype=dtype))


class CLIPTextEncoder(fl.Chain):
    """Encode prompts, each token by itself and those before it.

    The result is neither pooled nor projected. The first child is the tokenizer; `encoder[1:]` takes ids instead of
    prompts, and `encoder[:-2]` gives the features that enter the last layer. Both share the weights.

    See [[arXiv:2103.00020] Learning Transferable Visual Models From Natural Language
    Supervision](https://arxiv.org/abs/2103.00020), section 2.4.

    Args:
        embedding_dim: The number of features.
        max_sequence_length: The number of tokens of a prompt, with its start, its end and the padding.
        vocabulary_size: The number of tokens there are.
        num_layers: The number of layers.
        num_attention_heads: The number of heads.
        feedforward_dim: The inner number of features of the feed-forward blocks.
        layer_norm_eps: Added to the variance in normalizations.
        use_quick_gelu: Whether to approximate the GeLU by `x * sigmoid(1.702 * x)`.
        tokenizer: The tokenizer (default: one that gives `max_sequence_length` ids).
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        text (str | list[str]): A prompt, or several.

    Returns:
        Float[Tensor, "batch max_sequence_length embedding_dim"]: The features, normalized.

    Raises:
        AssertionError: If `embedding_dim` is not divisible by `num_attention_heads`.
        TypeError: If the tokenizer is something else.
        ValueError: If the tokenizer gives more than `max_sequence_length` ids.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        max_sequence_length: int = 77,
        vocabulary_size: int = 49408,
        num_layers: int = 12,
        num_attention_heads: int = 12,
        feedforward_dim: int = 3072,
        layer_norm_eps: float = 1e-5,
        use_quick_gelu: bool = False,
        tokenizer: CLIPTokenizer | None = None,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.max_sequence_length = max_sequence_length
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.feedforward_dim = feedforward_dim
        self.layer_norm_eps = layer_norm_eps
        self.use_quick_gelu = use_quick_gelu
        if tokenizer is None:
            tokenizer = CLIPTokenizer(sequence_length=max_sequence_length)
        if not isinstance(tokenizer, CLIPTokenizer):
            raise TypeError(f"tokenizer must be a CLIPTokenizer, got {type(tokenizer).__name__}")
        if tokenizer.sequence_length > max_sequence_length:
            raise ValueError(
                f"tokenizer must give at most max_sequence_length {max_sequence_length} ids,"
                f" got one that gives {tokenizer.sequence_length}"
            )
        super().__init__(
            tokenizer,
            fl.Converter(set_dtype=False),
            fl.Sum(
                TokenEncoder(vocabulary_size, embedding_dim, device=device, dtype=dtype),
                PositionalEncoder(max_sequence_length, embedding_dim, device=device, dtype=dtype),
            ),
            *(
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
            fl.LayerNorm(embedding_dim, eps=layer_norm_eps, device=device, dtype=dtype),
        )
        if use_quick_gelu:
            for gelu, parent in list(self.walk(fl.GeLU)):
                parent.replace(gelu, fl.GeLU(approximation=fl.GeLUApproximation.SIGMOID))

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer in use; raises `AssertionError` if it was removed."""
        return self.ensure_find(CLIPTokenizer)


class CLIPTextEncoderL(CLIPTextEncoder):
    """The text encoder of CLIP ViT-L/14: 12 layers of 768 features, as used by Stable Diffusion 1.5 and XL.

    Args:
        device: Where to create the weights.
        dtype: Their dtype.
        sizes: Arguments of `CLIPTextEncoder`, for a model of another size.
    """

    def __init__(
        self, device: Device | str | None = None, dtype: DType | None = None, **sizes: Unpack[CLIPTextEncoderSizes]
    ) -> None:
        published: CLIPTextEncoderSizes = {
            "embedding_dim": 768,
            "num_layers": 12,
            "num_attention_heads": 12,
            "feedforward_dim": 3072,
            "use_quick_gelu": True,
        }
        super().__init__(**(published | sizes), device=device, dtype=dtype)


class CLIPTextEncoderH(CLIPTextEncoder):
    """The text encoder of OpenCLIP ViT-H/14 as used by Stable Diffusion 2: 23 layers of 1024 features.

    The 24th layer of the original is left out, because Stable Diffusion does not use it.

    Args:
        device: Where to create the weights.
        dtype: Their dtype.
        sizes: Arguments of `CLIPTextEncoder`, for a model of another size.
    """

    def __init__(
        self, device: Device | str | None = None, dtype: DType | None = None, **sizes: Unpack[CLIPTextEncoderSizes]
    ) -> None:
        published: CLIPTextEncoderSizes = {
            "embedding_dim": 1024,
            "num_layers": 23,
            "num_attention_heads": 16,
            "feedforward_dim": 4096,
        }
        super().__init__(**(published | sizes), device=device, dtype=dtype)


class CLIPTextEncoderG(CLIPTextEncoder):
    """The text encoder of OpenCLIP ViT-bigG/14: 32 layers of 1280 features, as used by Stable Diffusion XL.

    Prompts are filled up with the id 0 instead of the end of text.

    Args:
        device: Where to create the weights.
        dtype: Their dtype.
        sizes: Arguments of `CLIPTextEncoder`, for a model of another size.
    """

    def __init__(
        self, device: Device | str | None = None, dtype: DType | None = None, **sizes: Unpack[CLIPTextEncoderSizes]
    ) -> None:
        published: CLIPTextEncoderSizes = {
            "embedding_dim": 1280,
            "num_layers": 32,
            "num_attention_heads": 20,
            "feedforward_dim": 5120,
        }
        tokenizer = CLIPTokenizer(sequence_length=sizes.get("max_sequence_length", 77), pad_token_id=0)
        super().__init__(**(published | sizes), tokenizer=tokenizer, device=device, dtype=dtype)
