"""The normal form of texts, and what a word is."""

import re
import unicodedata

import pytest

from refiners.foundationals.clip.words import normalize, split_special, word_pattern

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def test_the_pattern_knows_the_letters_and_numbers_of_unicode() -> None:
    """Next to another letter, a letter continues the word; a number never does; the rest runs on by itself."""
    words = word_pattern()
    for kind, neighbour in (("L", "a"), ("N", "1"), ("", "!")):
        of_kind = [c for c in CHARACTERS if unicodedata.category(c)[0] in (kind or "MPSC")]
        of_kind = [c for c in of_kind if not c.isspace() or "\x1c" <= c <= "\x1f"]
        assert len(of_kind) > 1500
        found = [match[0] for match in words.finditer(" ".join(neighbour + c for c in of_kind))]
        if kind == "N":
            assert found == [x for c in of_kind for x in ("1", c)]
        else:
            assert found == [neighbour + c for c in of_kind]


def test_white_space_is_that_of_unicode() -> None:
    spaces = set(CHARACTERS).difference("".join(word_pattern().findall("".join(CHARACTERS))))
    assert spaces == {c for c in CHARACTERS if c.isspace()} - set("\x1c\x1d\x1e\x1f")
    assert all(normalize(f"a{c}{c}b") == "a b" for c in spaces)
    assert normalize("a\x1cb") == "a\x1cb"


@pytest.mark.parametrize(
    "text,words",
    [
        ("it's", ["it", "'s"]),
        ("IT'S", ["IT", "'S"]),
        ("they'll've", ["they", "'ll", "'ve"]),
        ("'ſ", ["'", "ſ"]),
        ("don''t", ["don", "''", "t"]),
        ("64k", ["6", "4", "k"]),
        ("a_b__", ["a", "_", "b", "__"]),
        ("_!_!", ["_!_!"]),
        ("e\u0301", ["e", "\u0301"]),
        ("½²Ⅷ", ["½", "²", "Ⅷ"]),
        (" \t", []),
        ("<|endoftext|>!<|startoftext|>", ["<|endoftext|>", "!<|", "startoftext", "|>"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert word_pattern().findall(text) == words


def test_the_normal_form() -> None:
    assert normalize("  A\t\n b ") == " a b "
    assert normalize("e\u0301 \u212b") == "é å"
    assert normalize("İ") == "i\u0307"
    assert normalize("ΟΔΟΣ") == "οδοσ" != "ΟΔΟΣ".lower()


def test_special_tokens_are_spelled_exactly() -> None:
    assert split_special("a<|endoftext|>b") == ["a", "<|endoftext|>", "b"]
    assert split_special("<|startoftext|>") == ["", "<|startoftext|>", ""]
    assert split_special("<|EndOfText|>") == ["<|EndOfText|>"]


def test_whole_words_are_found_wherever_they_stand() -> None:
    pattern = word_pattern(["<cat>", "dog*"])
    assert pattern.flags & re.IGNORECASE
    assert "|".join(pattern.findall("(<cat>)!<CAT>a<cat>b 'a_<cat>'")) == "(|<cat>|)!|<CAT>|a|<cat>|b|'|a|_|<cat>|'"
    assert pattern.findall("bulldog*s <cats> dogs") == ["bull", "dog*", "s", "<", "cats", ">", "dogs"]
    assert pattern.findall("it's 64k!") == word_pattern().findall("it's 64k!")


def test_the_first_whole_word_is_tried_first() -> None:
    assert word_pattern(["<a>b", "<a>"]).findall("<a>b") == ["<a>b"]
    assert word_pattern(["<a>", "<a>b"]).findall("<a>b") == ["<a>", "b"]
