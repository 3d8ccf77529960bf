"""Write the table of the linear layers of a U-Net, from the names and shapes of its weights.

    python benchmarks/ops/generate_shapes.py sdxl_unet.safetensors --model sdxl --image-size 1024 \
        --output python/refiners/bench/shapes/sdxl.csv

The weights are a safetensors file (its header is read, no tensor is) or a JSON object `{name: shape}`, both with the
names of this library's U-Nets. A row of the table is a distinct problem: how many rows x in -> out, with or without a
bias, and how many layers of the model pose it. The rows follow from where a layer stands:

- the latent image has one token per 8x8 pixels; each Downsample halves both sides for the blocks after it, each
  Upsample doubles them;
- keys and values of a cross-attention see the text, everything else in a transformer block the image;
- the embeddings of time and pooled text have one row per sample.
"""

import argparse
import json
import re
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

PIXELS_PER_LATENT = 8

# What a layer is, by its path; the first match counts.
ROLES = {
    r"TimestepEncoder\.": "embedding",
    r"RangeAdapter2d\.": "embedding",
    r"\.SelfAttention\.Distribute\.": "self_attention.qkv",
    r"\.SelfAttention\.Linear": "self_attention.out",
    r"\.Attention\.Distribute\.Linear_1": "cross_attention.q",
    r"\.Attention\.Distribute\.Linear_[23]": "cross_attention.kv",
    r"\.Attention\.Linear": "cross_attention.out",
    r"\.Residual_3\.Linear_1": "feed_forward.in",
    r"\.Residual_3\.Linear_2": "feed_forward.out",
    r"CrossAttention\.Chain_[13]\.Linear": "projection",
}


class Problem(NamedTuple):
    """One matrix product: `rows x in_features -> out_features`."""

    rows: int
    in_features: int
    out_features: int
    bias: bool


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Read the shape of every weight from a safetensors header or a JSON object."""
    if path.suffix != ".safetensors":
        return json.loads(path.read_text())
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, list[int]]] = json.loads(file.read(size))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def natural_order(name: str) -> list[str | int]:
    """Sort "Chain_10" after "Chain_9"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def block_of(name: str) -> str:
    """Give the part of a name that says which block a weight belongs to: "DownBlocks.Chain_4" or "MiddleBlock"."""
    found = re.search(r"((?:Down|Up)Blocks\.Chain_\d+|MiddleBlock|TimestepEncoder)", name)
    return found.group(1) if found else ""


def downsamplings(names: Iterable[str]) -> dict[str, int]:
    """Count, per block, the halvings of the image between the input and the layers of the block."""
    by_block: dict[str, bool] = defaultdict(bool)
    for name in names:
        by_block[block_of(name)] |= ".Downsample." in name or ".Upsample." in name
    level = 0
    levels: dict[str, int] = {}
    for prefix, step in (("DownBlocks", 1), ("MiddleBlock", 0), ("UpBlocks", -1)):
        for block in sorted((b for b in by_block if b.startswith(prefix)), key=natural_order):
            levels[block] = level
            level += step * by_block[block]  # the resampling is the last layer of its block
    return levels


def role_of(name: str) -> str:
    """Say what the linear layer `name` does."""
    for pattern, role in ROLES.items():
        if re.search(pattern, name):
            return role
    raise ValueError(f"no role is known for the linear layer {name}")


def count_problems(
    shapes: Mapping[str, list[int]], image_size: int, batch: int, text_tokens: int
) -> dict[Problem, Counter[str]]:
    """Group the linear layers by the problem they pose: problem -> role -> number of layers."""
    levels = downsamplings(shapes)
    problems: dict[Problem, Counter[str]] = defaultdict(Counter)
    for name, shape in shapes.items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        role = role_of(name)
        if role == "embedding":
            tokens = 1
        elif role == "cross_attention.kv":
            tokens = text_tokens
        else:
            tokens = (image_size // PIXELS_PER_LATENT >> levels[block_of(name)]) ** 2
        bias = name.removesuffix("weight") + "bias" in shapes
        problems[Problem(batch * tokens, shape[1], shape[0], bias)][role] += 1
    return problems


def render(problems: Mapping[Problem, Counter[str]], model: str, comments: Iterable[str]) -> str:
    """Write the table as CSV, largest problem first, after the comments."""
    lines = [*(f"# {comment}" for comment in comments), "model,layers,rows,in_features,out_features,bias,count"]
    for problem in sorted(problems, key=lambda p: (-p.rows * p.in_features * p.out_features, p)):
        roles = problems[problem]
        rows, in_features, out_features, bias = problem
        lines.append(
            f"{model},{'+'.join(sorted(roles))},{rows},{in_features},{out_features},{int(bias)},{roles.total()}"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a .safetensors file, or JSON {name: shape}")
    parser.add_argument("--model", required=True, help="the name of the model in the table")
    parser.add_argument("--image-size", type=int, required=True, help="side of the image, in pixels")
    parser.add_argument("--batch", type=int, default=2, help="samples in a batch (default: 2, for guidance)")
    parser.add_argument("--text-tokens", type=int, default=77, help="tokens of the text (default: 77)")
    parser.add_argument("--output", type=Path, required=True, help="the CSV to write")
    args = parser.parse_args()
    problems = count_problems(read_shapes(args.weights), args.image_size, args.batch, args.text_tokens)
    count = sum(roles.total() for roles in problems.values())
    comments = (
        f"The {count} linear layers of the {args.model} U-Net: {args.image_size}x{args.image_size} pixels, batch "
        f"{args.batch}, {args.text_tokens} text tokens.",
        "Derived from the names and shapes of its weights by benchmarks/ops/generate_shapes.py: do not edit.",
    )
    args.output.write_text(render(problems, args.model, comments))
    print(f"{args.output}: {len(problems)} problems, {count} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
