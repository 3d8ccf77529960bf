"""The two text encoders of Stable Diffusion XL, as one."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.fluxion.context import Contexts
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder, CLIPTextEncoderG, CLIPTextEncoderL
from refiners.foundationals.clip.tokenizer import CLIPTokenizer


class TextEncoderWithPooling(fl.Chain, Adapter[CLIPTextEncoder]):
    """Make a text encoder return its last but one features, and a projection of its last ones at the end of the text.

    Receives:
        text (str | list[str]): The prompts.

    Returns:
        Float[Tensor, "batch tokens dim"]: The features before the last layer.
        Float[Tensor, "batch dim"]: The projected features of the (first) end-of-text token, after the last layer.
    """

    is_built_in = True

    def __init__(
        self,
        target: CLIPTextEncoder,
        projection: fl.Linear | None = None,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Split a text encoder before its last layer.

        Args:
            target: The text encoder; its layers are shared, and it is left as it is.
            projection: The projection (default: a new one, without bias).
            device: Where to create the projection.
            dtype: The dtype of the projection.
        """
        dim = target.embedding_dim
        if projection is None:
            projection = fl.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        with self.setup_adapter(target):
            super().__init__(
                target.ensure_find(CLIPTokenizer),
                fl.SetContext("text_encoder_pooling", "end_of_text_index", self.set_end_of_text_index),
                target[1:-2],
                fl.Parallel(
                    fl.Identity(),
                    fl.Chain(target[-2:], projection, fl.Lambda(self.pool)),
                ),
            )

    def init_context(self) -> Contexts:
        return {"text_encoder_pooling": {"end_of_text_index": []}}

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer."""
        return self.ensure_find(CLIPTokenizer)

    # No child of this chain is the target, so that nothing is in two places after a copy.

    def _pre_structural_copy(self) -> None:
        pass

    def _post_structural_copy(self, source: Adapter[CLIPTextEncoder]) -> None:
        self._target = [source.target.structural_copy()]

    # Plain annotations, because trees show them.

    def set_end_of_text_index(self, end_of_text_index: list[int], tokens: Tensor) -> None:
        """Append the position of the first end-of-text token of each row."""
        ends: Int[Tensor, "batch"] = (tokens == self.tokenizer.end_of_text_token_id).int().argmax(dim=1)
        end_of_text_index += cast("list[int]", ends.tolist())  # the tokenizer's ids are on the CPU

    def pool(self, x: Tensor) -> Tensor:
        """Take the features of the end-of-text tokens."""
        index = self.use_context("text_encoder_pooling")["end_of_text_index"]
        return x[torch.arange(x.shape[0], device=x.device), torch.tensor(index, device=x.device)]


class DoubleTextEncoder(fl.Chain):
    """Encode prompts by CLIP L and OpenCLIP G side by side.

    See [[arXiv:2307.01952] SDXL](https://arxiv.org/abs/2307.01952), section 2.1.

    Receives:
        text (str | list[str]): The prompts.

    Returns:
        Float[Tensor, "batch tokens 2048"]: The last but one features of both, concatenated.
        Float[Tensor, "batch 1280"]: The projected features of the end of the text, from G.
    """

    def __init__(
        self,
        text_encoder_l: CLIPTextEncoder | None = None,
        text_encoder_g: CLIPTextEncoder | None = None,
        projection: fl.Linear | None = None,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Bring two text encoders together.

        Args:
            text_encoder_l: The first one, whose last layer is not used (default: a new `CLIPTextEncoderL`).
            text_encoder_g: The second one (default: a new `CLIPTextEncoderG`).
            projection: The projection of the pooled features (default: a new one, without bias).
            device: Where to create what is new.
            dtype: The dtype of what is new.
        """
        first = CLIPTextEncoderL(device=device, dtype=dtype) if text_encoder_l is None else text_encoder_l
        second = CLIPTextEncoderG(device=device, dtype=dtype) if text_encoder_g is None else text_encoder_g
        super().__init__(fl.Parallel(first[:-2], second), fl.Lambda(self.concatenate_embeddings))
        TextEncoderWithPooling(second, projection=projection, device=device, dtype=dtype).inject(
            self.layer("Parallel", fl.Parallel)
        )

    def concatenate_embeddings(
        self, text_embedding_l: Tensor, text_embedding_with_pooling: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Concatenate the features of both encoders; keep the pooled ones."""
        text_embedding_g, pooled = text_embedding_with_pooling
        return torch.cat((text_embedding_l, text_embedding_g), dim=-1), pooled
