"""The words of a text, as CLIP takes them: its normal form, and the pattern that matches one word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
_SPECIAL = re.compile(f"({re.escape(START_OF_TEXT)}|{re.escape(END_OF_TEXT)})")

# The property White_Space of Unicode. `\s` of Python also takes the separators U+001C to U+001F.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACES = re.compile(f"[{_SPACE}]+")


def split_special(text: str) -> list[str]:
    """Split a text before and after each special token, spelled exactly as it is."""
    return _SPECIAL.split(text)


def normalize(text: str) -> str:
    """Compose characters (NFC), replace each run of white space by one space, and lower-case.

    Letters are lower-cased one by one: a capital sigma is never a final one.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("Σ", "σ")
    return _SPACES.sub(" ", text).lower()


def word_pattern(whole: Sequence[str] = ()) -> re.Pattern[str]:
    """Compile the pattern of a word: an English clitic, some letters, one digit, or some other characters.

    Before all that, the text of a special token is one match. Letters and digits are those of Unicode (the categories L
    and N, in the version of Unicode that Python has), and an underscore is another character.

    Args:
        whole: Texts that are words wherever they stand, also next to letters; those that come first are tried first.
    """
    numeric = _numeric_but_not_decimal()
    letter, digit, other = rf"[^\W\d_{numeric}]", rf"[\d{numeric}]", rf"[^\w{_SPACE}]|_"
    special = f"{re.escape(START_OF_TEXT)}|{re.escape(END_OF_TEXT)}"
    clitics = "'(?:[SsTtMmDd]|[Rr][Ee]|[Vv][Ee]|[Ll][Ll])"  # ignoring case, re would take a long s (ſ) for an s
    if not whole:
        return re.compile(f"(?-i:{special}|{clitics}|{letter}+|{digit}|(?:{other})+)", re.IGNORECASE)
    first = "|".join(map(re.escape, whole))
    elsewhere = f"(?!(?i:{first}))"
    rest = f"{special}|{clitics}|(?:{elsewhere}{letter})+|{digit}|(?:{elsewhere}(?:{other}))+"
    return re.compile(f"{first}|(?-i:{rest})", re.IGNORECASE)


@cache
def _numeric_but_not_decimal() -> str:
    """List the categories Nl and No, all in the first two planes, as ranges of a character class.

    `re` has one class for letters and numbers and one for decimal digits: these make up the difference.
    """
    ranges: list[list[int]] = []
    for character in filter(str.isnumeric, map(chr, range(0x80, 0x20000))):
        if character.isdecimal() or character.isalpha():
            continue
        if ranges and ranges[-1][1] == ord(character) - 1:
            ranges[-1][1] += 1
        else:
            ranges.append([ord(character)] * 2)
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
