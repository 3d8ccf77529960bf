"""Transformer blocks that attend to an image, and from it to a context."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxtyping import Shaped
from torch import Size, Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.context import Contexts
from refiners.foundationals.latent_diffusion.reuse import Reused

if TYPE_CHECKING:
    from typing_extensions import Self


class Distribute(fl.Distribute):
    """Call the i-th child with the i-th argument; from the second on, keep what they make of an unchanged one.

    The keys and values of a prompt are the same at each step.
    """

    def __init__(self, *layers: fl.Module) -> None:
        self._reused = [Reused() for _ in layers]
        super().__init__(*layers)

    def forward(self, *args: Any) -> tuple[Any, ...]:
        if len(args) != len(self) or len(args) > len(self._reused):
            return super().forward(*args)
        results: list[Any] = []
        for arg, (name, layer), reused in zip(args, self._modules.items(), self._reused):
            call = partial(self._call_layer, layer, name)
            results.append(reused(call, (arg,), (layer,)) if results and isinstance(arg, Tensor) else call(arg))
        return tuple(results)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for reused in self._reused:  # the old place need not keep what is not needed there
            reused.forget()
        return super()._apply(fn, recurse)

    def _show_only_tag(self) -> bool:
        return True


class CrossAttentionBlock(fl.Chain):
    """Attend to the sequence itself, then to a context, then feed forward with a GeGLU; each on top of the input.

    See [[arXiv:2112.10752] High-Resolution Image Synthesis with Latent Diffusion
    Models](https://arxiv.org/abs/2112.10752), section 3.3 and appendix E.2.1.

    Args:
        embedding_dim: The number of features of the sequence.
        context_embedding_dim: The number of features of the context.
        context_key: The entry of the context `cross_attention_block` to attend to.
        num_heads: The number of heads.
        use_bias: Whether the projections to queries, keys and values have a bias; the other ones always have.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch length embedding_dim"]): The sequence.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: The result.

    Raises:
        AssertionError: If `embedding_dim` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        embedding_dim: int,
        context_embedding_dim: int,
        context_key: str,
        num_heads: int = 1,
        use_bias: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.context_embedding_dim = context_embedding_dim
        self.context = "cross_attention_block"
        self.context_key = context_key
        self.num_heads = num_heads
        self.use_bias = use_bias
        attention = fl.Attention(
            embedding_dim,
            num_heads=num_heads,
            key_embedding_dim=context_embedding_dim,
            value_embedding_dim=context_embedding_dim,
            use_bias=use_bias,
            device=device,
            dtype=dtype,
        )
        projections = attention.layer("Distribute", fl.Distribute)
        attention.replace(projections, Distribute(*projections))
        super().__init__(
            fl.Residual(
                fl.LayerNorm(embedding_dim, device=device, dtype=dtype),
                fl.SelfAttention(embedding_dim, num_heads=num_heads, use_bias=use_bias, device=device, dtype=dtype),
            ),
            fl.Residual(
                fl.LayerNorm(embedding_dim, device=device, dtype=dtype),
                fl.Parallel(
                    fl.Identity(), fl.UseContext(self.context, context_key), fl.UseContext(self.context, context_key)
                ),
                attention,
            ),
            fl.Residual(
                fl.LayerNorm(embedding_dim, device=device, dtype=dtype),
                fl.Linear(embedding_dim, 8 * embedding_dim, device=device, dtype=dtype),
                fl.GLU(fl.GeLU()),
                fl.Linear(4 * embedding_dim, embedding_dim, device=device, dtype=dtype),
            ),
        )


class StatefulFlatten(fl.Chain):
    """Merge consecutive dimensions, and append their sizes to a list in a context, for an `Unflatten` to undo it.

    Args:
        context: The name of the context.
        key: The entry that is the list.
        start_dim: The first dimension to merge.
        end_dim: The last dimension to merge.

    Receives:
        x (Shaped[Tensor, "*shape"]): The input.

    Returns:
        Shaped[Tensor, "*new_shape"]: The input with fewer dimensions; a view where its memory permits.
    """

    def __init__(self, context: str, key: str, start_dim: int = 0, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim
        super().__init__(
            fl.SetContext(context, key, callback=self._push), fl.Flatten(start_dim=start_dim, end_dim=end_dim)
        )

    def _push(self, sizes: list[Size], x: Shaped[Tensor, "*shape"]) -> None:
        sizes.append(x.shape[self.start_dim : self.end_dim + 1 or None])


class CrossAttentionBlock2d(fl.Residual):
    """Attend from each pixel of an image to the others and to a context, on top of the image.

    The pixels travel as a sequence. For an image in `torch.channels_last` no pixel is moved to make it one.

    See [[arXiv:2112.10752] High-Resolution Image Synthesis with Latent Diffusion
    Models](https://arxiv.org/abs/2112.10752), appendix E.2.1.

    Args:
        channels: The number of channels.
        context_embedding_dim: The number of features of the context.
        context_key: The entry of the context `cross_attention_block` to attend to.
        num_attention_heads: The number of heads.
        num_attention_layers: How many `CrossAttentionBlock` follow each other.
        num_groups: In how many groups the channels are normalized.
        use_bias: Whether the projections to queries, keys and values have a bias; the other ones always have.
        use_linear_projection: Whether what precedes and follows the attention is a linear layer on the sequence, rather
            than a convolution of the image with a kernel of one pixel.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The image.

    Returns:
        Float[Tensor, "batch channels height width"]: The image plus the update.

    Raises:
        AssertionError: If `channels` is not divisible by `num_attention_heads`.
        ValueError: If `channels` is not divisible by `num_groups`.
    """

    def __init__(
        self,
        channels: int,
        context_embedding_dim: int,
        context_key: str,
        num_attention_heads: int = 1,
        num_attention_layers: int = 1,
        num_groups: int = 32,
        use_bias: bool = True,
        use_linear_projection: bool = False,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        if channels % num_attention_heads != 0:
            raise AssertionError(f"channels {channels} must be divisible by num_attention_heads {num_attention_heads}")
        self.channels = channels
        self.in_channels = channels
        self.out_channels = channels
        self.context_embedding_dim = context_embedding_dim
        self.num_attention_heads = num_attention_heads
        self.num_attention_layers = num_attention_layers
        self.num_groups = num_groups
        self.use_bias = use_bias
        self.context_key = context_key
        self.use_linear_projection = use_linear_projection
        self.projection_type = "Linear" if use_linear_projection else "Conv2d"

        def project() -> fl.Linear | fl.Conv2d:
            if use_linear_projection:
                return fl.Linear(channels, channels, device=device, dtype=dtype)
            return fl.Conv2d(channels, channels, kernel_size=1, device=device, dtype=dtype)

        flatten = (StatefulFlatten("flatten", "sizes", start_dim=2), fl.Transpose(1, 2))
        unflatten = (
            fl.Transpose(1, 2),
            fl.Parallel(fl.Identity(), fl.UseContext("flatten", "sizes").compose(_pop)),
            fl.Unflatten(dim=2),
        )
        norm = fl.GroupNorm(channels, num_groups=num_groups, eps=1e-6, device=device, dtype=dtype)
        blocks = [
            CrossAttentionBlock(
                channels,
                context_embedding_dim,
                context_key,
                num_heads=num_attention_heads,
                use_bias=use_bias,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_attention_layers)
        ]
        super().__init__(
            fl.Chain(norm, *flatten, project()) if use_linear_projection else fl.Chain(norm, project(), *flatten),
            fl.Chain(blocks),
            fl.Chain(project(), *unflatten) if use_linear_projection else fl.Chain(*unflatten, project()),
        )

    def init_context(self) -> Contexts:
        return {"flatten": {"sizes": []}}


def _pop(sizes: list[Size]) -> Size:  # of the module rather than a lambda, so that the layer can be pickled
    return sizes.pop()
