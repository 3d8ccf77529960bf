"""Files of safetensors whose tensors are wrong: of other dtypes and shapes, infinite, or lost."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable

from drafts import SIZES, Draft, Mutation, each_of, floats, mutation


def _numbers(draft: Draft, index: int) -> int:
    return math.prod(draft.entry(index)["shape"])


@mutation
def another_dtype(draft: Draft, rng: random.Random) -> None:
    """Write zeros and ones in another dtype."""
    index, dtype = draft.pick(rng), rng.choice(list(SIZES))
    count = _numbers(draft, index)
    draft.set(index, dtype, draft.entry(index)["shape"], rng.choice((b"\0", b"\1")) * (count * SIZES[dtype]))


@mutation
def another_dtype_of_all(draft: Draft, rng: random.Random) -> None:
    dtype = rng.choice(("I8", "BOOL", "F8_E4M3", "F64", "BF16", "U8"))
    for index in range(len(draft.entries)):
        data = rng.randbytes(_numbers(draft, index) * SIZES[dtype])
        draft.set(
            index, dtype, draft.entry(index)["shape"], bytes(byte & 1 if dtype == "BOOL" else byte for byte in data)
        )


each_of(
    "values",
    {
        "NaN": math.nan,
        "infinite": math.inf,
        "infinite, negative": -math.inf,
        "largest": 3.4e38,
        "smallest": 1e-45,
        "zero": 0.0,
        "large": 1e30,
    },
    lambda value: lambda draft, rng: _one_value(draft, rng, value),
)


def _one_value(draft: Draft, rng: random.Random, value: float) -> None:
    index = draft.pick(rng, "weight", "w1_a", "w2_b", "diff", "w_norm", "ia3_l", "dora_scale")
    count = _numbers(draft, index)
    values = [rng.uniform(-1, 1) for _ in range(count)]
    for position in range(count) if rng.random() < 0.3 else rng.sample(range(count), min(count, 1)):
        values[position] = value
    draft.set(index, "F32", draft.entry(index)["shape"], floats(*values))


@mutation
def a_tensor_lost(draft: Draft, rng: random.Random) -> None:
    del draft.entries[draft.pick(rng)]


@mutation
def half_of_a_pair_lost(draft: Draft, rng: random.Random) -> None:
    del draft.entries[draft.pick(rng, "up.weight", "down.weight", "lora_A.weight", "lora_B.weight", "w1_a", "w2_b")]


@mutation
def one_side_of_all_pairs_lost(draft: Draft, rng: random.Random) -> None:
    lost = rng.choice((("up.weight", "lora_B.weight", "_a"), ("down.weight", "lora_A.weight", "_b")))
    draft.entries = [each for each in draft.entries if not each[0].endswith(lost)] or draft.entries[:1]


@mutation
def all_tensors_but_one_lost(draft: Draft, rng: random.Random) -> None:
    draft.entries = [draft.entries[draft.pick(rng)]]


@mutation
def two_tensors_swapped(draft: Draft, rng: random.Random) -> None:
    one, other = draft.pick(rng), draft.pick(rng)
    key, key_of_other = draft.entries[one][0], draft.entries[other][0]
    draft.rename(one, key_of_other)
    draft.rename(other, key)


@mutation
def another_order(draft: Draft, rng: random.Random) -> None:
    rng.shuffle(draft.entries)


@mutation
def another_shape(draft: Draft, rng: random.Random) -> None:
    """Give a tensor of as many numbers, or of others, another shape."""
    entry = draft.entry(index := draft.pick(rng, "weight", "_a", "_b", "w1", "diff", "norm"))
    shape = list(entry["shape"])
    changes: list[Callable[[], list[int]]] = [
        lambda: shape[::-1],
        lambda: [math.prod(shape)],
        lambda: [1, *shape],
        lambda: [*shape, 1],
        lambda: [*shape, 1, 1],
        lambda: [*shape, 3, 3],
        lambda: [size + 1 for size in shape],
        lambda: [*shape[:-1], shape[-1] * 2] if shape else [2],
        lambda: [],
        lambda: [1] * len(shape),
        lambda: [0, *shape[1:]],
        lambda: [*shape[:1], 0],
        lambda: [0] * len(shape),
    ]
    changed = rng.choice(changes)()
    draft.set(index, "F32", changed, floats(*(rng.uniform(-1, 1) for _ in range(math.prod(changed)))))


@mutation
def another_rank(draft: Draft, rng: random.Random) -> None:
    """Change the rank of one factor, or of both of a pair."""
    rank = rng.choice((0, 0, 1, 5))
    index = draft.pick(rng, "down.weight", "lora_A.weight", "w1_b", "w2_b")
    name = draft.entries[index][0].rpartition(".")[0].rpartition(".")[0]
    both = [i for i, (key, _) in enumerate(draft.entries) if key.startswith(name)] if rng.random() < 0.5 else [index]
    for each in both:
        shape = list(draft.entry(each)["shape"])
        if len(shape) > 1:
            side = 0 if draft.entries[each][0].endswith(("down.weight", "lora_A.weight", "_b")) else 1
            shape[side] = rank
            draft.set(each, "F32", shape, floats(*(rng.uniform(-1, 1) for _ in range(math.prod(shape)))))


def _alpha(value: bytes, dtype: str = "F32", shape: list[int] | None = None) -> Mutation:
    def change(draft: Draft, rng: random.Random) -> None:
        index = draft.pick(rng, ".alpha")
        if not draft.entries[index][0].endswith(".alpha"):
            name = draft.entries[index][0].partition(".lora")[0]
            draft.entries.append((f"{name}.alpha", {}))
            index = len(draft.entries) - 1
        draft.set(index, dtype, shape or [], value)

    return change


each_of(
    "alpha",
    {
        "a vector": _alpha(floats(1, 2, 3), shape=[3]),
        "no number": _alpha(b"", shape=[0]),
        "in a list": _alpha(floats(2), shape=[1, 1]),
        "NaN": _alpha(floats(math.nan)),
        "infinite": _alpha(floats(math.inf)),
        "huge": _alpha(floats(3e38)),
        "largest": _alpha(struct.pack("<d", 1.7e308), "F64"),
        "tiny": _alpha(floats(1e-45)),
        "zero": _alpha(floats(0)),
        "negative": _alpha(floats(-2)),
        "an integer": _alpha(struct.pack("<q", 2), "I64"),
        "a large integer": _alpha(struct.pack("<q", 2**63 - 1), "I64"),
        "a flag": _alpha(b"\1", "BOOL"),
        "of a byte": _alpha(b"\x38", "F8_E4M3"),
        "no number of a byte": _alpha(b"\x7f", "F8_E4M3"),
        "a half": _alpha(struct.pack("<e", 2.0), "F16"),
    },
    lambda change: change,
)


@mutation
def a_lone_alpha(draft: Draft, rng: random.Random) -> None:
    draft.entries.append((rng.choice(("lora_unet_conv_in.alpha", "x.alpha", ".alpha", "alpha")), {}))
    draft.set(len(draft.entries) - 1, "F32", [], floats(1))
