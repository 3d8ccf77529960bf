"""The keys of files with updates of layers: the name of a layer, and what its tensor is for.

Each trainer writes them in its own way, as here the matrix A of [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685)
of one layer:

- kohya-ss/sd-scripts and LyCORIS: `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`, or with the names of
  the original model, `lora_unet_input_blocks_1_1_proj_in.lora_down.weight`; OneTrainer may have dots in the name;
- PEFT, and diffusers: `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`; older ones `.lora.down.weight`, or
  `...attn1.processor.to_q_lora.down.weight`, or `.lora_linear_layer.down.weight`;
- ours: `SD1UNet.DownBlocks.Chain_2.CLIPLCrossAttention.Chain_1.1.Conv2d.down.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = str
"""What a tensor is for: `"down"`, `"up"`, `"alpha"`, or the name that its kind of update has for it."""

Style: TypeAlias = Literal["kohya", "peft", "diffusers", "refiners", "other"]
"""Who writes keys that end like this."""

HADAMARD_ROLES = tuple(f"hada_{each}" for each in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
KRONECKER_ROLES = tuple(f"lokr_{each}" for each in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2"))

_LORA = r"(?:lora\.|lora_linear_layer\.)"  # of older diffusers
_ENDINGS: list[tuple[str, Role, Style]] = [
    (r"lora_down\.weight", "down", "kohya"),
    (r"lora_up\.weight", "up", "kohya"),
    (r"lora_mid\.weight", "mid", "kohya"),
    (r"lora_A\.(?:[^.]+\.)?weight", "down", "peft"),
    (r"lora_B\.(?:[^.]+\.)?weight", "up", "peft"),
    (rf"{_LORA}down\.weight", "down", "diffusers"),
    (rf"{_LORA}up\.weight", "up", "diffusers"),
    (r"down\.weight", "down", "refiners"),
    (r"up\.weight", "up", "refiners"),
    (rf"{_LORA}?alpha", "alpha", "other"),
    (r"scalar", "scalar", "other"),
    # The kinds of which these tensors are: see `kinds.recognised`.
    (r"lora_(?:up|B|down|A)(?:\.[^.]+)?\.bias", "lora_bias", "other"),
    (r"lora_embedding_[AB](?:\.[^.]+)?", "lora_embedding", "peft"),
    (rf"{_LORA}?dora_scale", "dora_scale", "kohya"),
    (r"lora_magnitude_vector(?:\.[^.]+)*", "magnitude", "peft"),
    *((rf"{role}(?:\.weight)?", role, "kohya") for role in HADAMARD_ROLES + KRONECKER_ROLES),
    (r"(?:oft_(?:blocks|diag|[RS])|boft_[RS])(?:\.[^.]+)*", "oft", "other"),
    (r"(?:[ab][12]|bm)\.weight", "glora", "kohya"),
    (r"ia3_l(?:\.[^.]+)*", "ia3_l", "peft"),
    (r"on_input", "on_input", "kohya"),
    *((role, role, "kohya") for role in ("diff", "diff_b", "w_norm", "b_norm")),
    (r"bias_(?:indices|values|size)", "sparse_bias", "kohya"),
]
# The shortest layer is taken, and with it the longest ending.
_KEY = re.compile(r"(.+?)[._](?:" + "|".join(f"({ending})" for ending, _, _ in _ENDINGS) + ")")
_COMMON: dict[str, tuple[Role, Style]] = {  # the last two parts of most keys: no need to search
    ".lora_down.weight": ("down", "kohya"),
    ".lora_up.weight": ("up", "kohya"),
    ".lora_A.weight": ("down", "peft"),
    ".lora_B.weight": ("up", "peft"),
}
_EMBEDDING = re.compile(r"(bundle_emb\..+)\.([^.]+)")  # of OneTrainer
_LONGEST = 1000  # characters of a key; searching a longer one takes long, and no layer has such a name


@dataclass
class Entry:
    """The tensors of one layer in a file.

    Attributes:
        name: The layer, as the file calls it.
        keys: The keys of its tensors, by what they are for; several of one role have numbers after the first.
        styles: Who writes such keys.
    """

    name: str
    keys: dict[Role, str] = field(default_factory=dict[Role, str])
    styles: set[Style] = field(default_factory=set[Style])
    _counts: dict[Role, int] = field(default_factory=dict[Role, int], init=False, repr=False, compare=False)

    def add(self, role: Role, key: str, style: Style) -> None:
        """Add a tensor."""
        if role in self.keys:
            self._counts[role] = self._counts.get(role, 1) + 1
            role = f"{role}_{self._counts[role]}"
        self.keys[role] = key
        self.styles.add(style)


def split_keys(keys: Iterable[str]) -> tuple[list[Entry], list[str]]:
    """Collect the tensors of each layer, in the order of their first keys, and list the keys of no known ending."""
    entries: dict[str, Entry] = {}
    rest: list[str] = []
    for key in keys:
        split = _split(key)
        if split is None:
            rest.append(key)
            continue
        name, role, style = split
        entries.setdefault(name, Entry(name)).add(role, key, style)
    return list(entries.values()), _scaled_weights(entries, rest)


def _split(key: str) -> tuple[str, Role, Style] | None:
    if len(key) > _LONGEST:
        return None
    end = key.rfind(".")
    start = key.rfind(".", 0, end)
    if start > 0 and (common := _COMMON.get(key[start:])):
        return key[:start], *common
    if key.endswith(".alpha") and ".lora" not in key[start:] and "_lora" not in key[start:]:
        return key[:end], "alpha", "other"
    found = _KEY.fullmatch(key)
    if found is not None:
        _, role, style = _ENDINGS[(found.lastindex or 2) - 2]
        return found[1], role, style
    found = _EMBEDDING.fullmatch(key)
    return None if found is None else (found[1], "embedding", "other")


def _scaled_weights(entries: Mapping[str, Entry], rest: list[str]) -> list[str]:
    """Take the keys of LyCORIS' IA3, a mere `.weight` beside `.on_input`, from those left over."""
    left: list[str] = []
    for key in rest:
        entry = entries.get(key.removesuffix(".weight"))
        if entry is not None and "on_input" in entry.keys and key.endswith(".weight"):
            entry.add("ia3_w", key, "kohya")
        else:
            left.append(key)
    return left
