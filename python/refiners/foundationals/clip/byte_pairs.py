"""Byte-pair encoding: its alphabet, its vocabulary, and the merging of one word."""

from __future__ import annotations

import gzip
import heapq
from collections.abc import Mapping
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, cast

from refiners.fluxion.bulk import collections_paused

END_OF_WORD = "</w>"
_MAX_MERGES = 49152 - 256 - 2  # of the vocabulary of CLIP; the file goes on, with merges that were never used


@cache
def byte_alphabet() -> dict[int, str]:
    """Map each byte to a character that is visible: those that are not, in order, to the ones from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(256)).difference(visible))
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def spell(word: str) -> str:
    """Write the UTF-8 bytes of a word in the byte alphabet."""
    return word.encode().decode("latin-1").translate(byte_alphabet())


class Vocabulary(NamedTuple):
    """The tables of a merges file.

    Attributes:
        ids: Piece -> id. The alphabet comes first, then the alphabet at the end of a word, the result of each merge,
            and the empty string, which stands for the two special tokens.
        ranks: Pair of pieces -> rank; the merge of rank 0 is applied first.
    """

    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]


@cache
def load_vocabulary(path: Path) -> Vocabulary:
    """Read a merges file: gzip, UTF-8, a header, then one pair per line. Each file is read once.

    Raises:
        ValueError: If a line is not a pair.
    """
    with collections_paused(), gzip.open(path, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in islice(file, 1, _MAX_MERGES + 1)]
        for number, merge in enumerate(merges, start=2):
            if len(merge) != 2:
                raise ValueError(f"{path}: line {number} must be a pair of pieces, got {' '.join(merge)!r}")
        alphabet = list(byte_alphabet().values())
        pieces = chain(alphabet, (piece + END_OF_WORD for piece in alphabet), map("".join, merges), ["", ""])
        return Vocabulary(
            ids={piece: id for id, piece in enumerate(pieces)},
            ranks={pair: rank for rank, pair in enumerate(cast("list[tuple[str, str]]", merges))},
        )


def merge_pieces(pieces: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Merge neighbours, the pair of lowest rank first and the leftmost of equals, until no pair has a rank.

    See [[arXiv:1508.07909] Neural Machine Translation of Rare Words with Subword
    Units](https://arxiv.org/abs/1508.07909), section 3.2. For n pieces it takes O(n log n) steps.
    """
    pieces = [*pieces]
    end = len(pieces)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    queue: list[tuple[int, int]] = []  # (rank, index of the left piece)

    def consider(left: int) -> None:
        if left >= 0 and after[left] < end:
            rank = ranks.get((pieces[left], pieces[after[left]]))
            if rank is not None:
                heapq.heappush(queue, (rank, left))

    for index in range(end):
        consider(index)
    while queue:
        rank, left = heapq.heappop(queue)
        right = after[left]
        # A piece that was merged into the one before is empty, and no pair with it has a rank.
        if right == end or ranks.get((pieces[left], pieces[right])) != rank:
            continue  # a merge has changed this pair since
        pieces[left] += pieces[right]
        pieces[right] = ""
        after[left] = after[right]
        if after[left] < end:
            before[after[left]] = left
        consider(left)
        consider(before[left])
    return [piece for piece in pieces if piece]
