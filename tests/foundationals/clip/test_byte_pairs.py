"""The alphabet of bytes, the merges file, and the merging of one word."""

import gzip
import hashlib
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from refiners.foundationals.clip import byte_pairs
from refiners.foundationals.clip.byte_pairs import byte_alphabet, load_vocabulary, merge_pieces, spell

MERGES = Path(byte_pairs.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"


def test_the_alphabet_has_one_visible_character_for_each_byte() -> None:
    alphabet = byte_alphabet()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    assert list(alphabet) == printable + others
    assert all(alphabet[byte] == chr(byte) for byte in printable)
    assert [ord(alphabet[byte]) for byte in others] == list(range(256, 256 + 68))
    assert len(set(alphabet.values())) == 256 and all(c.isprintable() and c != " " for c in alphabet.values())


def test_words_are_spelled_in_bytes() -> None:
    assert spell("cat!") == "cat!"
    assert spell("é") == "Ã©"
    assert spell("🐱") == "ðŁĲ±"
    assert spell(" \x00") == "ĠĀ"


def test_the_merges_file_is_the_public_one() -> None:
    digest = hashlib.sha256(MERGES.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert "Copyright (c) 2021 OpenAI" in (MERGES.parent / "LICENSE.bpe_simple_vocab_16e6.txt").read_text()


def test_ids_are_given_in_the_order_of_the_file() -> None:
    ids, ranks = load_vocabulary(MERGES)
    assert len(ids) == 49407 and max(ids.values()) == 49407 and 49406 not in ids.values()
    assert len(ranks) == 48894 and sorted(ranks.values()) == list(range(48894))
    assert (ids["!"], ids["!</w>"], ids["in"], ids["the</w>"], ids["cat</w>"], ids[""]) == (
        0,
        256,
        512,
        518,
        2368,
        49407,
    )
    assert all(ids["".join(pair)] >= 512 + rank for pair, rank in ranks.items())
    assert ranks["i", "n"] == 0


def test_each_file_is_read_once() -> None:
    assert load_vocabulary(MERGES) is load_vocabulary(MERGES)


def test_a_short_file_has_few_ids(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(b"header\na b\nab c</w>\n"))
    ids, ranks = load_vocabulary(path)
    assert ranks == {("a", "b"): 0, ("ab", "c</w>"): 1}
    assert (ids["ab"], ids["abc</w>"], ids[""]) == (512, 513, 515)


@pytest.mark.parametrize("line", ["a b c", "a", ""])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(f"header\na b\n{line}\nc d\n".encode()))
    with pytest.raises(ValueError, match=f"line 3 must be a pair of pieces, got '{line}'"):
        load_vocabulary(path)


def merge_plainly(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """As section 3.2 says: look for the best pair, merge its first occurrence, begin again."""
    while True:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, 1 << 30), default=None)
        if best is None or best not in ranks:
            return pieces
        index = pairs.index(best)
        pieces = [*pieces[:index], "".join(best), *pieces[index + 2 :]]


def test_merging_is_that_of_the_paper() -> None:
    _, ranks = load_vocabulary(MERGES)
    rng = random.Random(0)
    for _ in range(400):
        word = "".join(rng.choice("aaaaoeinthrsdl") for _ in range(rng.randint(1, 40)))
        pieces = [*word[:-1], word[-1] + "</w>"]
        assert merge_pieces(pieces, ranks) == merge_plainly(pieces, ranks)


def test_of_equal_pairs_the_leftmost_is_merged() -> None:
    assert merge_pieces(list("aaaaa"), {("a", "a"): 0}) == ["aa", "aa", "a"]
    assert merge_pieces(list("aaaaa"), {("a", "a"): 0, ("aa", "aa"): 1, ("aa", "a"): 2}) == ["aaaa", "a"]
    assert merge_pieces(list("aba"), {("b", "a"): 0, ("a", "b"): 1}) == ["a", "ba"]


def test_the_pieces_given_are_not_changed() -> None:
    pieces = list("abc")
    assert merge_pieces(pieces, {("a", "b"): 0}) == ["ab", "c"]
    assert pieces == list("abc")
    assert merge_pieces([], {}) == [] and merge_pieces(["a"], {}) == ["a"]


def test_the_time_grows_with_the_length_not_with_its_square() -> None:
    _, ranks = load_vocabulary(MERGES)
    word = random.Random(0).choices("etaoinshrdlu", k=40_000)
    start = time.process_time()
    assert "".join(merge_pieces(word, ranks)) == "".join(word)
    assert time.process_time() - start < 10  # a twentieth of a second for each 10,000; the plain way takes minutes
