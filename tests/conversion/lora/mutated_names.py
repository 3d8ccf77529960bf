"""Files of safetensors with odd keys, and odd texts beside the tensors."""

from __future__ import annotations

import math
import random

from drafts import Draft, Mutation, each_of, floats, mutation

NAMES = {
    "a path": "../../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a path of another system": "C:\\Windows\\system32",
    "NUL": "lora_unet\0_conv_in",
    "half a character": "lora_unet_\ud800_conv_in",
    "halves in the wrong order": "\udc00\ud800",
    "long": "a" * 10_000,
    "many dots": "." * 1_000,
    "many parts": "a." * 5_000,
    "a part many times": "lora_unet_conv_in" + ".ia3_l" * 3_000 + ".",
    "dots alone": "...",
    "empty": "",
    "a method": "__class__",
    "an attribute": "__class__.__init__.__globals__",
    "lines": "one\ntwo\r\nthree",
    "codes of a terminal": "\x1b[31mred\x1b[0m\x07",
    "blanks": "   ",
    "another alphabet": "чебурашка",
    "the other direction": "\u202egnirts",
    "a number": "1",
    "a long number": "SD1UNet.DownBlocks." + "9" * 5_000 + ".Linear",
    "another number": "SD1UNet.DownBlocks.\u0661.Linear",
    "metadata": "__metadata__",
    "marks": "'\"`$(){}[]<>|&;%s{0}",
    "unknown": "lora_unet_down_blocks_99_resnets_0_conv1",
}
_ENDINGS = ("", ".lora_down.weight", ".lora_up.weight", ".alpha", ".weight", ".hada_w1_a", ".dora_scale", ".diff")


def _named(name: str) -> Mutation:
    def change(draft: Draft, rng: random.Random) -> None:
        index = draft.pick(rng)
        draft.rename(index, name + rng.choice(_ENDINGS))
        if rng.random() < 0.3:  # and all others of the layer
            whole = draft.entries[index][0].partition(".")[0]
            for other, (key, _) in enumerate(draft.entries):
                if key.startswith(f"{whole}."):
                    draft.rename(other, name + key[len(whole) :])

    return change


each_of("a key", NAMES, _named)


@mutation
def all_names_unknown(draft: Draft, rng: random.Random) -> None:
    """Then updates may be attached by their order."""
    for index, (key, _) in enumerate(draft.entries):
        draft.rename(index, f"x{key}")


@mutation
def all_endings_unknown(draft: Draft, rng: random.Random) -> None:
    for index in range(len(draft.entries)):
        draft.rename(index, f"x.{index}.weight")


@mutation
def a_tensor_more(draft: Draft, rng: random.Random) -> None:
    name = draft.entries[draft.pick(rng)][0].partition(".")[0]
    endings = (
        "lora_A.weight",
        "lora_mid.weight",
        "lora_up.bias",
        "on_input",
        "scalar",
        "dora_scale",
        "hada_t1",
        "bias",
    )
    more = (
        *endings,
        "lora_magnitude_vector",
        "oft_blocks",
        "lokr_t2",
        "lora_embedding_A",
        "diff_b",
        "w_norm",
        "a1.weight",
    )
    draft.entries.append((f"{name}.{rng.choice(more)}", {}))
    shape = rng.choice(([], [1], [2], [2, 2], [8], [8, 1], [2, 2, 3, 3], [2, 2, 1, 1], [0]))
    draft.set(len(draft.entries) - 1, "F32", shape, floats(*(rng.uniform(-1, 1) for _ in range(math.prod(shape)))))


# --- what the file says -----------------------------------------------------------------------------------------------

_SETTINGS = {
    "no JSON": "{r: 2}",
    "a list": "[1]",
    "null": "null",
    "deep": "[" * 100_000,
    "numbers": '{"unet.r": 0, "unet.lora_alpha": -1}',
    "negative": '{"unet.r": -2, "unet.lora_alpha": 4, "unet.use_rslora": true}',
    "texts": '{"unet.r": "two", "unet.lora_alpha": "four"}',
    "flags": '{"unet.r": true, "unet.lora_alpha": false}',
    "infinite": '{"unet.r": 2, "unet.lora_alpha": 1e999}',
    "NaN": '{"unet.r": 2, "unet.lora_alpha": NaN}',
    "long": '{"unet.r": 2, "unet.lora_alpha": 1' + "0" * 400 + "}",
    "a long rank": '{"unet.r": 1' + "0" * 400 + ', "unet.lora_alpha": 2}',
    "no table": '{"unet.rank_pattern": [1], "unet.alpha_pattern": "x", "unet.lora_alpha": 2}',
    "no pattern": '{"unet.alpha_pattern": {"(": 2}, "unet.lora_alpha": 2}',
    "a slow pattern": '{"unet.alpha_pattern": {"((a|.)+)+!": 2}, "unet.lora_alpha": 2}',
    "another slow pattern": '{"unet.alpha_pattern": {"' + ".*" * 30 + '!": 2}, "unet.lora_alpha": 2}',
    "a pattern of a text": '{"unet.alpha_pattern": {".*": "x"}, "unet.lora_alpha": 2}',
    "an infinite pattern": '{"unet.alpha_pattern": {".*": Infinity}, "unet.lora_alpha": 2}',
    "rs-LoRA of a text": '{"unet.use_rslora": "no", "unet.lora_alpha": 2}',
    "no network": '{"": 1, ".": 2, "...": {}}',
    "objects": '{"unet.r": {}, "unet.lora_alpha": []}',
}
each_of(
    "settings",
    _SETTINGS,
    lambda text: lambda draft, rng: setattr(draft, "said", {"lora_adapter_metadata": text}),
)
each_of(
    "metadata",
    {
        "a list": ["a"],
        "a list of pairs": [["a", "b"]],
        "a text": "text",
        "a number": 1,
        "zero": 0,
        "numbers": {"lora_adapter_metadata": 5, "ss_base_model_version": 3},
        "lists": {"ss_base_model_version": ["a", {}]},
        "objects": {"lora_adapter_metadata": {"unet.r": 2}, "modelspec.title": {"a": "b"}},
        "null": {"lora_adapter_metadata": None, "modelspec.title": None},
        "half a character": {"modelspec.title": "\ud800", "ss_base_model_version": "sd\udfff"},
        "codes of a terminal": {"modelspec.title": "\x1b]0;title\x07\x1b[2J"},
        "long": {"modelspec.title": "x" * 1_000_000},
        "an odd key": {"../\0": "x", "": ""},
        "texts": {"ss_base_model_version": "sd_v1", "modelspec.title": "Style"},
    },
    lambda said: lambda draft, rng: setattr(draft, "said", said),
)
