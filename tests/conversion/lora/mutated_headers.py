"""Files of safetensors that are cut off or damaged, and headers that are wrong."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

from drafts import MUTATIONS, Draft, each_of, mutation

# --- the file ---------------------------------------------------------------------------------------------------------


@mutation
def cut_off(draft: Draft, rng: random.Random) -> bytes:
    content = draft.write()
    return content[: rng.randrange(len(content))]


@mutation
def cut_off_within_the_header(draft: Draft, rng: random.Random) -> bytes:
    return draft.write()[: rng.randrange(8 + len(draft.header()))]


@mutation
def longer(draft: Draft, rng: random.Random) -> bytes:
    return draft.write() + rng.randbytes(rng.randrange(1, 100))


@mutation
def flipped_bits(draft: Draft, rng: random.Random) -> bytes:
    return _flipped(bytearray(draft.write()), 0, rng)


@mutation
def flipped_bits_of_the_header(draft: Draft, rng: random.Random) -> bytes:
    content = bytearray(draft.write())
    return _flipped(content[: 8 + len(draft.header())], 8, rng) + content[8 + len(draft.header()) :]


def _flipped(content: bytearray, start: int, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 20))):
        content[rng.randrange(start, len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


@mutation
def a_part_lost(draft: Draft, rng: random.Random) -> bytes:
    content = draft.write()
    begin = rng.randrange(len(content))
    return content[:begin] + content[begin + rng.randrange(1, 50) :]


@mutation
def a_part_more(draft: Draft, rng: random.Random) -> bytes:
    content = draft.write()
    begin = rng.randrange(len(content))
    return content[:begin] + rng.randbytes(rng.randrange(1, 50)) + content[begin:]


@mutation
def a_part_of_zeros(draft: Draft, rng: random.Random) -> bytes:
    content = bytearray(draft.write())
    begin = rng.randrange(len(content))
    end = min(len(content), begin + rng.randrange(1, 200))
    content[begin:end] = bytes(end - begin)
    return bytes(content)


each_of(
    "file",
    {
        "empty": b"",
        "zeros": bytes(1000),
        "a text": b"<html><body>404: not found</body></html>" * 10,
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "ones": b"\xff" * 1000,
        "a header alone": struct.pack("<Q", 2) + b"{}",
        "a length alone": struct.pack("<Q", 2),
        "half a length": b"\x02\x00\x00",
    },
    lambda content: lambda draft, rng: content,
)
MUTATIONS["file: random bytes"] = lambda draft, rng: rng.randbytes(rng.randrange(2000))

# --- the header -------------------------------------------------------------------------------------------------------

each_of(
    "length of the header",
    {
        "0": 0,
        "1": 1,
        "negative": -1,
        "smallest negative": -(2**63),
        "huge": 2**62,
        "all bits": 2**64 - 1,
        "the limit": 100_000_000,
        "above the limit": 100_000_001,
    },
    lambda length: lambda draft, rng: draft.write(length=length),
)
each_of(
    "length of the header",
    {"one less": -1, "one more": 1, "half": -100, "past the end": 10**6},
    lambda more: lambda draft, rng: draft.write(length=max(0, len(draft.header()) + more)),
)
each_of(
    "header",
    {
        "no JSON": b"this is no JSON at all",
        "a list": b"[]",
        "a list of pairs": b'[["a", {}]]',
        "a number": b"12345",
        "a text": b'"text"',
        "null": b"null",
        "empty": b"{}",
        "blanks": b" " * 100,
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "a deep value": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "no UTF-8": b'{"\xff\xfe": {}}',
        "another encoding": '{"a": {}}'.encode("utf-16"),
        "a mark first": b"\xef\xbb\xbf{}",
        "NUL": b'{"a\0": {}}',
        "a long number": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 100_000 + b'], "data_offsets": [0, 4]}}',
        "two objects": b"{}{}",
        "trailing comma": b'{"a": {},}',
        "single quotes": b"{'a': {}}",
    },
    lambda header: lambda draft, rng: draft.write(header),
)


@mutation
def blanks_after_the_header(draft: Draft, rng: random.Random) -> bytes:
    return draft.write(draft.header() + b" " * rng.choice((1, 7, 100_000)))


@mutation
def a_huge_header(draft: Draft, rng: random.Random) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    draft.entries += [(f"{rng.getrandbits(64):x}.{number}", entry) for number in range(20_000)]


@mutation
def many_tensors_of_one_layer(draft: Draft, rng: random.Random) -> None:
    name, entry = draft.entries[draft.pick(rng)][0].partition(".")[0], {"dtype": "F32", "shape": [0]}
    entry["data_offsets"] = [0, 0]
    ending = rng.choice(("lora_A.{}.weight", "lora_magnitude_vector.{}", "ia3_l.{}"))
    draft.entries += [(f"{name}.{ending.format(number)}", entry) for number in range(20_000)]


@mutation
def a_key_twice(draft: Draft, rng: random.Random) -> None:
    draft.entries.insert(rng.randrange(len(draft.entries) + 1), draft.entries[draft.pick(rng)])


@mutation
def a_key_twice_with_other_values(draft: Draft, rng: random.Random) -> None:
    key, entry = draft.entries[draft.pick(rng)]
    draft.entries.append((key, {**entry, "data_offsets": draft.entry(draft.pick(rng))["data_offsets"]}))


@mutation
def a_field_twice(draft: Draft, rng: random.Random) -> bytes:
    return draft.write(draft.header().replace(b'"dtype":', b'"dtype": "I8", "dtype":', 1))


each_of(
    "entry",
    {"null": None, "a list": [], "a text": "F32", "a number": 3, "empty": {}, "deep": [[[[[[]]]]]]},
    lambda value: lambda draft, rng: draft.entries.__setitem__(i := draft.pick(rng), (draft.entries[i][0], value)),
)


def _field(name: str, *choices: Any) -> None:
    def change(draft: Draft, rng: random.Random) -> None:
        index = draft.pick(rng)
        draft.entry(index)[name] = rng.choice(choices)

    MUTATIONS[f"{name}: anything"] = change

    def lose(draft: Draft, rng: random.Random) -> None:
        del draft.entry(draft.pick(rng))[name]

    MUTATIONS[f"{name}: lost"] = lose


_field("dtype", "F4", "f32", "", None, 5, ["F32"], {"F32": 1}, "F32\0", "float32", "U16", "BOOL", "I64", "F64", "C64")
_field("shape", None, "2", 2, [[2]], [2.0], [-2, -2], ["2"], {}, [True], [None], [-1], [1e400], [math.nan], [10**30])
_field(
    "data_offsets",
    *(None, [], [0], [0, 1, 2], "01", [0.0, 4.0], [-4, 0], [4, 0], [None, None], [True, False], {"0": 4}),
    *([0, 2**63], [2**63, 2**63 + 4], [2**64 - 4, 2**64], [-(2**63), 0], [10**30, 10**30 + 4], ["0", "4"], [1e400, 5]),
)


@mutation
def a_field_more(draft: Draft, rng: random.Random) -> None:
    draft.entry(draft.pick(rng))["more"] = rng.choice((1, None, [[]], "text"))


@mutation
def overlapping_tensors(draft: Draft, rng: random.Random) -> None:
    one, other = draft.pick(rng), draft.pick(rng)
    size = draft.entry(one)["data_offsets"][1] - draft.entry(one)["data_offsets"][0]
    begin = max(0, min(draft.entry(other)["data_offsets"][0] + rng.choice((0, 1, 4)), len(draft.data) - size))
    draft.entry(one)["data_offsets"] = [begin, begin + size]


@mutation
def past_the_end(draft: Draft, rng: random.Random) -> None:
    begin, end = draft.entry(index := draft.pick(rng))["data_offsets"]
    more = rng.choice((len(draft.data), 1, 2**40, 2**62))
    draft.entry(index)["data_offsets"] = [begin + more, end + more]


@mutation
def another_place(draft: Draft, rng: random.Random) -> None:
    begin, end = draft.entry(index := draft.pick(rng))["data_offsets"]
    draft.data += bytes(8)
    draft.entry(index)["data_offsets"] = [len(draft.data) - (end - begin), len(draft.data)]


@mutation
def a_hole(draft: Draft, rng: random.Random) -> None:
    """Move all tensors, also to where none is aligned."""
    size = rng.choice((1, 3, 64))
    draft.data[:0] = rng.randbytes(size)
    for _, entry in draft.entries:
        entry["data_offsets"] = [each + size for each in entry["data_offsets"]]


each_of(
    "a shape whose product overflows",
    {
        "2^32 · 2^32": [2**32, 2**32],
        "2^62 · 4": [2**62, 4],
        "2^31 · 2^33 · 2": [2**31, 2**33, 2],
        "2^21 cubed, and more": [2**22, 2**21, 2**21],
        "2^63": [2**63],
        "2^64": [2**64],
        "with a zero": [2**62, 2**62, 0],
        "a zero first": [0, 2**62, 2**62],
        "2^64 and a zero": [2**64, 0],
    },
    lambda shape: lambda draft, rng: draft.set(draft.pick(rng), "F32", shape, b""),
)


@mutation
def many_dimensions(draft: Draft, rng: random.Random) -> None:
    index = draft.pick(rng, rng.choice((".alpha", ".weight")))
    entry = draft.entry(index)
    entry["shape"] = [1] * rng.choice((3, 5, 26, 65, 10_000)) + entry["shape"]
