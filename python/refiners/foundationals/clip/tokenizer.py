"""The tokenizer of CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Int64
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.byte_pairs import END_OF_WORD, byte_alphabet, load_vocabulary, merge_pieces, spell
from refiners.foundationals.clip.words import END_OF_TEXT, START_OF_TEXT, normalize, split_special, word_pattern

# What is the text of a special token in lower case only: three words to the public tokenizer, whatever follows.
_NOT_SPECIAL = {START_OF_TEXT: ("<|", "startoftext", "|>"), END_OF_TEXT: ("<|", "endoftext", "|>")}

# Words in the memo of an instance: enough for any set of prompts, and a bound for a process that never ends.
_MAX_CACHED, _MAX_CACHED_LENGTH = 1 << 16, 64


class CLIPTokenizer(fl.Module):
    """Byte-pair encoding of prompts, as the public CLIP tokenizer does it.

    See [[arXiv:2103.00020] Learning Transferable Visual Models From Natural Language
    Supervision](https://arxiv.org/abs/2103.00020), section 2.4.

    The ids are those of `transformers.CLIPTokenizer` for any text: letters and digits of any script are kept, and the
    texts `<|startoftext|>` and `<|endoftext|>`, spelled exactly so, are the special tokens. (Historically, Refiners
    dropped letters that are not ASCII, and spelled most symbols and emoji byte by byte.)

    The tables are read once for all instances. Each has a pattern, a memo and a mapping of ids of its own, where
    concepts are added; the ranks are shared and not to be changed.

    Args:
        vocabulary_path: A merges file: gzip, UTF-8, a header and one pair per line.
        sequence_length: How many ids a prompt has after truncation or padding; at least 2.
        start_of_text_token_id: The id put before a prompt.
        end_of_text_token_id: The id put after a prompt.
        pad_token_id: The id to fill up with.

    Receives:
        text (str | list[str]): A prompt, or several.

    Returns:
        Int64[Tensor, "batch sequence_length"]: The ids, on the CPU.

    Attributes:
        byte_to_unicode_mapping (dict[int, str]): Byte -> the character that stands for it in the vocabulary.
        byte_decoder (dict[str, int]): The inverse.
        token_to_id_mapping (dict[str, int]): Piece of a word -> id; the last piece of a word ends in `</w>`.
        byte_pair_encoding_ranks (dict[tuple[str, str], int]): Pair of pieces -> rank.
        byte_pair_encoding_cache (dict[str, str]): Word -> its pieces, joined by spaces; at most 65536 are remembered.
        token_pattern (re.Pattern): What a word is.

    Raises:
        ValueError: If `sequence_length` is below 2, or the file is not a merges file.
        AssertionError: When called, if the argument is neither a string nor a list of strings.
    """

    def __init__(
        self,
        vocabulary_path: str | Path = Path(__file__).parent / "bpe_simple_vocab_16e6.txt.gz",
        sequence_length: int = 77,
        start_of_text_token_id: int = 49406,
        end_of_text_token_id: int = 49407,
        pad_token_id: int = 49407,
    ) -> None:
        super().__init__()
        if sequence_length < 2:
            raise ValueError(f"sequence_length must be at least 2, the start and the end, got {sequence_length}")
        self.vocabulary_path = Path(vocabulary_path)
        vocabulary = load_vocabulary(self.vocabulary_path.resolve())
        self.sequence_length = sequence_length
        self.start_of_text_token_id = start_of_text_token_id
        self.end_of_text_token_id = end_of_text_token_id
        self.pad_token_id = pad_token_id
        self.byte_to_unicode_mapping = self.get_bytes_to_unicode_mapping()
        self.byte_decoder = {character: byte for byte, character in self.byte_to_unicode_mapping.items()}
        self.token_to_id_mapping = dict(vocabulary.ids)
        self.byte_pair_encoding_ranks = vocabulary.ranks
        self.byte_pair_encoding_cache = {"": ""}
        self.token_pattern = word_pattern()

    @staticmethod
    def get_bytes_to_unicode_mapping() -> dict[int, str]:
        """Return a new dict from each byte to the character that stands for it in the vocabulary."""
        return dict(byte_alphabet())

    def forward(self, text: str | list[str]) -> Int64[Tensor, "batch sequence_length"]:
        if isinstance(text, str):
            return self.tokenize_str(text)
        if not isinstance(text, list):
            raise AssertionError(f"Expected type `str` or `list[str]`, got {type(text).__name__}")
        for prompt in cast("list[object]", text):
            if not isinstance(prompt, str):
                raise AssertionError(f"Expected type `str` or `list[str]`, got a list with {type(prompt).__name__}")
        if not text:
            return torch.empty(0, self.sequence_length, dtype=torch.int64)
        return torch.cat([self.tokenize_str(prompt) for prompt in text])

    def tokenize_str(self, text: str) -> Int64[Tensor, "1 sequence_length"]:
        """Encode a prompt, truncated or padded to `sequence_length` ids. Its last id, before padding, is the end."""
        ids = self._encode(text, self.sequence_length)
        padding = [self.pad_token_id] * (self.sequence_length - len(ids))
        return torch.tensor([ids + padding], dtype=torch.int64)

    def cut_off(self, text: str) -> str:
        """Give the end of a prompt that `tokenize_str` truncates, in lower case; nothing if the prompt is short enough.

        A word of which only some ids are left counts as cut off.
        """
        first = next(islice(self._tokens(text), self.sequence_length - 2, None), None)
        if first is None:
            return ""
        _, number, start = first
        parts = [normalize(part) for part in split_special(text)[number:]]
        return (parts[0][start:] + "".join(parts[1:])).strip()

    def encode(self, text: str, max_length: int | None = None) -> Int64[Tensor, "length"]:
        """Encode a prompt, without padding.

        Args:
            text: The prompt.
            max_length: How many ids there may be, with the start and the end (default: any number).

        Returns:
            The start, the ids of the prompt, the end; on the CPU.

        Raises:
            AssertionError: If `max_length` is below 2.
            TypeError: If the prompt is not a string.
            ValueError: If the prompt has a lone surrogate, which is no character.
        """
        return torch.tensor(self._encode(text, max_length), dtype=torch.int64)

    def byte_pair_encoding(self, token: str) -> str:
        """Split a word, spelled in the characters of the byte table, into pieces, joined by spaces."""
        pieces = self.byte_pair_encoding_cache.get(token)
        if pieces is None:
            pieces = " ".join(merge_pieces([*token[:-1], token[-1] + END_OF_WORD], self.byte_pair_encoding_ranks))
            if len(token) <= _MAX_CACHED_LENGTH and len(self.byte_pair_encoding_cache) < _MAX_CACHED:
                self.byte_pair_encoding_cache[token] = pieces
        return pieces

    def _encode(self, text: str, max_length: int | None) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        if max_length is not None and max_length < 2:
            raise AssertionError(f"max_length must be at least 2, the start and the end, got {max_length}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at index {error.start}"
            raise ValueError(f"text must consist of characters, got the lone surrogate {found}") from None
        content = islice(self._tokens(text), None if max_length is None else max_length - 2)
        return [self.start_of_text_token_id, *(id for id, _, _ in content), self.end_of_text_token_id]

    def _tokens(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yield the ids of a text, and of each the number of the part and where in it its word begins.

        They come one by one, so that nothing is encoded beyond the last one that is wanted.
        """
        for number, part in enumerate(split_special(text)):
            if part == START_OF_TEXT:
                yield self.start_of_text_token_id, number, 0
            elif part == END_OF_TEXT:
                yield self.end_of_text_token_id, number, 0
            else:
                for match in self.token_pattern.finditer(normalize(part)):
                    start = match.start()
                    for word in _NOT_SPECIAL.get(match[0], (match[0],)):
                        for piece in self.byte_pair_encoding(spell(word)).split(" "):
                            yield self.token_to_id_mapping[piece], number, start
