"""Textual inversion: new words for a text encoder, each with a learned embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.clip.byte_pairs import spell
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder, TokenEncoder
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.clip.words import normalize, split_special, word_pattern

if TYPE_CHECKING:
    from typing_extensions import Self


class EmbeddingExtender(fl.Chain, Adapter[TokenEncoder]):
    """Add rows to a table of token embeddings, which itself is frozen meanwhile.

    Args:
        target: The table.

    Receives:
        x (Int64[Tensor, "batch length"]): The ids of tokens; those past the end of the table are the new ones.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: Their embeddings. Gradients reach `new_weight` only.

    Attributes:
        old_weight (Parameter): The weight of the target itself, shape [vocabulary_size, embedding_dim].
        new_weight (Parameter): The new rows, shape [num_new, embedding_dim]; none at first.

    Raises:
        TypeError: If the target is something else.
        ValueError: When called on the CPU, if an id has no row. (To look at them elsewhere would stop the device.)
    """

    old_weight: Parameter
    new_weight: Parameter

    def __init__(self, target: TokenEncoder) -> None:
        _check_target(target, TokenEncoder)
        with self.setup_adapter(target):
            super().__init__(fl.Lambda(self.lookup))
        self.old_weight = _weight_of(target)
        self.new_weight = Parameter(target.weight.detach().new_empty(0, target.embedding_dim))

    @property
    def num_embeddings(self) -> int:
        """The number of rows, old and new."""
        return self.old_weight.shape[0] + self.new_weight.shape[0]

    # Plain annotations, because trees show them.

    def lookup(self, x: Tensor) -> Tensor:
        """Return the rows of ids, as if the new rows came after the old ones in one table."""
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in x.aminmax())
            if low < 0 or high >= self.num_embeddings:
                raise ValueError(f"x must hold ids from 0 to {self.num_embeddings - 1}, got ids from {low} to {high}")
        first_new = self.old_weight.shape[0]
        if self.new_weight.shape[0] == 0:
            return F.embedding(x, self.old_weight.detach())
        # Twice as many rows as needed are read, which is nothing beside a copy of the tables into one.
        old = F.embedding(x.clamp(max=first_new - 1), self.old_weight.detach())
        new = F.embedding((x - first_new).clamp(min=0), self.new_weight)
        return torch.where((x >= first_new).unsqueeze(-1), new, old)

    def add_embedding(self, embedding: Float[Tensor, "embedding_dim"]) -> None:
        """Append a row. `new_weight` becomes a new parameter: an optimizer has to be told.

        Args:
            embedding: The row; it is copied, to the device and dtype of the others.

        Raises:
            TypeError: If it is not a tensor.
            AssertionError: If its shape is another; nothing has changed.
        """
        if not isinstance(embedding, Tensor):
            raise TypeError(f"embedding must be a tensor, got {type(embedding).__name__}")
        rows = self.new_weight.detach()
        if embedding.shape != rows.shape[1:]:
            raise AssertionError(f"embedding must have shape {tuple(rows.shape[1:])}, got {tuple(embedding.shape)}")
        row = embedding.to(device=rows.device, dtype=rows.dtype)
        self.new_weight = Parameter(torch.cat([rows, row.unsqueeze(0)]), self.new_weight.requires_grad)

    def inject(self, parent: fl.Chain | None = None) -> Self:
        # The target may have been moved, cast or loaded since.
        self.old_weight = _weight_of(self.target)
        old, new = self.old_weight, self.new_weight
        if (new.device, new.dtype) != (old.device, old.dtype):
            self.new_weight = Parameter(new.detach().to(device=old.device, dtype=old.dtype), new.requires_grad)
        return super().inject(parent)

    def eject(self) -> None:
        super().eject()
        self.target.weight = self.old_weight  # likewise

    def _pre_structural_copy(self) -> None:
        raise RuntimeError(f"{type(self).__name__} cannot be copied, eject it first: new rows would not be shared")


def _check_target(target: object, kind: type[fl.Module]) -> None:
    if not isinstance(target, kind):
        raise TypeError(f"target must be a {kind.__name__}, got {type(target).__name__}")


def _weight_of(target: TokenEncoder) -> Parameter:
    weight = target.weight
    assert isinstance(weight, Parameter)
    return weight


class TokenExtender(fl.Chain, Adapter[CLIPTokenizer]):
    """Add words to a tokenizer, each one token. The target stays as it is: the words are added to another like it.

    Args:
        target: The tokenizer.

    Raises:
        TypeError: If the target is something else.
    """

    def __init__(self, target: CLIPTokenizer) -> None:
        _check_target(target, CLIPTokenizer)
        self._tokens: list[str] = []
        with self.setup_adapter(target):
            super().__init__(
                CLIPTokenizer(
                    vocabulary_path=target.vocabulary_path,
                    sequence_length=target.sequence_length,
                    start_of_text_token_id=target.start_of_text_token_id,
                    end_of_text_token_id=target.end_of_text_token_id,
                    pad_token_id=target.pad_token_id,
                )
            )

    @property
    def _tokenizer(self) -> CLIPTokenizer:
        return self.ensure_find(CLIPTokenizer)

    def add_token(self, token: str, token_id: int) -> None:
        """Add a word. It is found wherever it stands, also next to letters or within punctuation, in any case.

        Where several words fit, the one added last is taken. (Historically, a word was not found right after
        punctuation, as in `(<token>)`.)

        Args:
            token: The word.
            token_id: Its id.

        Raises:
            AssertionError: If the tokenizer has this id already.
            TypeError: If the word is not a string.
            ValueError: If the word was added before, is empty, begins or ends with white space, or holds the text of
                a special token. In any case, nothing has changed.
        """
        token = self._check(token, token_id)
        tokenizer, spelled = self._tokenizer, spell(token)
        pattern = word_pattern([token, *self._tokens])
        self._tokens.insert(0, token)
        tokenizer.token_to_id_mapping[spelled] = token_id
        tokenizer.byte_pair_encoding_cache[spelled] = spelled  # so that it stays whole
        tokenizer.token_pattern = pattern

    def _check(self, token: str, token_id: int) -> str:
        """Check a word and its id; return the word as `add_token` stores it."""
        if not isinstance(token, str):
            raise TypeError(f"token must be a string, got {type(token).__name__}")
        normal = normalize(token)
        if not normal or normal != normal.strip(" "):
            raise ValueError(f"token must be a word without white space around it, got {token!r}")
        if len(split_special(normal)) > 1:
            raise ValueError(f"token must not hold the text of a special token, got {token!r}")
        if normal in self._tokens:
            raise ValueError(f"token must be a new word, got {token!r}, which was added before")
        if token_id in self._tokenizer.token_to_id_mapping.values():
            raise AssertionError(f"token_id must be a new id, got {token_id}, which the tokenizer has already")
        return normal


class ConceptExtender(fl.Chain, Adapter[CLIPTextEncoder]):
    """Add concepts to a text encoder: words, each with an embedding of its own.

    See [[arXiv:2208.01618] An Image is Worth One Word](https://arxiv.org/abs/2208.01618), section 3.

    The encoder does not change until `inject`; from then on, it knows the concepts. `eject` restores it, and keeps the
    concepts for the next injection.

        extender = ConceptExtender(encoder)
        extender.add_concept("<cat-toy>", embedding)
        extender.inject()
        features = encoder("a photo of a <cat-toy>")

    Args:
        target: The text encoder.

    Raises:
        TypeError: If the target is something else.
        RuntimeError: If the encoder has no token encoder or no tokenizer.
        AssertionError: If there are concepts in the encoder: they can be added to the extender that is there.
    """

    def __init__(self, target: CLIPTextEncoder) -> None:
        _check_target(target, CLIPTextEncoder)
        self._refuse_nesting(target)
        token_encoder = next(target.walk(TokenEncoder), None)
        if token_encoder is None:
            raise RuntimeError("TokenEncoder not found.")
        tokenizer = next(target.walk(CLIPTokenizer), None)
        if tokenizer is None:
            raise RuntimeError("Tokenizer not found.")
        # In tuples, so that torch does not register them as children. Each is what is adapted, and where.
        self._embedding_extender = (EmbeddingExtender(token_encoder[0]), token_encoder[1])
        self._token_extender = (TokenExtender(tokenizer[0]), tokenizer[1])
        with self.setup_adapter(target):
            super().__init__(target)

    @property
    def embedding_extender(self) -> EmbeddingExtender:
        """What holds the embeddings of the concepts."""
        return self._embedding_extender[0]

    @property
    def token_extender(self) -> TokenExtender:
        """What holds the words of the concepts."""
        return self._token_extender[0]

    @property
    def token_encoder_parent(self) -> fl.Chain:
        """The chain whose token encoder is extended."""
        return self._embedding_extender[1]

    @property
    def clip_tokenizer_parent(self) -> fl.Chain:
        """The chain whose tokenizer is extended."""
        return self._token_extender[1]

    def add_concept(self, token: str, embedding: Float[Tensor, "embedding_dim"]) -> None:
        """Add a concept, before or after injection. Its id is the number of embeddings there were.

        Args:
            token: The word; see `TokenExtender.add_token`.
            embedding: Its embedding.

        Raises:
            AssertionError: If the shape of the embedding is another, or the tokenizer has the id already.
            TypeError: If the word is not a string, or the embedding not a tensor.
            ValueError: If the word cannot be added; see `TokenExtender.add_token`. In any case, nothing has changed.
        """
        token_id = self.embedding_extender.num_embeddings
        self.token_extender._check(token, token_id)
        self.embedding_extender.add_embedding(embedding)
        self.token_extender.add_token(token, token_id)

    def inject(self, parent: fl.Chain | None = None) -> Self:
        self._refuse_nesting(self.target)
        super().inject(parent)
        try:
            self.embedding_extender.inject(self.token_encoder_parent)
            try:
                self.token_extender.inject(self.clip_tokenizer_parent)
            except Exception:
                self.embedding_extender.eject()
                raise
        except Exception:
            super().eject()
            raise
        return self

    def eject(self) -> None:
        super().eject()
        self.token_extender.eject()
        self.embedding_extender.eject()

    def _refuse_nesting(self, target: CLIPTextEncoder) -> None:
        if any(isinstance(chain, ConceptExtender) and chain is not self for chain in target.get_parents()):
            raise AssertionError("ConceptExtender cannot be nested, add concepts to the injected instance instead.")
