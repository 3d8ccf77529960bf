"""Measure the operators that replace functions of torch on the CPU, over shapes of the U-Nets of SD1.5 and SDXL, of the
autoencoder, SAM and Swin.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refiners.bench.environment import add_outputs, environment, heading, write
from refiners.bench.measure import Candidate, Plan, compare, make_flush, time_on_cpu
from refiners.ops import attention, conv2d, geglu, group_norm, linear, weighted_sum

DTYPES = (torch.float32, torch.bfloat16)
LINEARS = ((256, 1280, 10240), (256, 5120, 1280), (256, 1280, 1280), (256, 640, 640), (154, 2048, 640), (2, 1280, 1280))
GEGLUS = ((2048, 10240), (8192, 5120))  # SDXL; the second is that of SD1.5 at 64² too
IMAGES = ((320, 64), (640, 32), (1280, 16), (1280, 8))  # channels and width in SD1.5

CONVOLUTIONS = (  # batch, channels in and out, width: SD1.5; the decoder
    (2, 320, 320, 64),
    (2, 960, 320, 64),
    (2, 640, 640, 32),
    (2, 1920, 640, 32),
    (2, 1280, 1280, 16),
    (2, 2560, 1280, 16),
    (2, 1280, 1280, 8),
    (2, 2560, 1280, 8),
    (1, 512, 512, 64),
    (1, 128, 128, 256),
)
ATTENTIONS = (  # heads, queries, keys, features of a head: SD1.5 and SDXL, of tokens and of text; the autoencoder
    (8, 4096, 4096, 40),
    (10, 1024, 1024, 64),
    (8, 1024, 1024, 80),
    (4, 1024, 1024, 128),
    (8, 256, 256, 160),
    (8, 4096, 77, 40),
    (10, 1024, 77, 64),
    (1, 1024, 1024, 512),
)
PROMPTS = ((8, 4096, 40, 4), (10, 1024, 64, 16))  # heads, queries, features, keys of an image prompt beside 77 of text
GRIDS = ((25, 16, 14, 80), (1, 2, 64, 80))  # batch, heads, width of the grid, features: in windows and over all of SAM
LATENTS = (64, 128)  # the width of latents, in SD1.5 and SDXL
WINDOWS = ((64, 4, 49), (64, 4, 144), (16, 8, 144))  # windows, heads, tokens in Swin, with 32 features


class Case(NamedTuple):
    """The same work by torch and by an operator."""

    operator: str
    shape: str
    dtype: torch.dtype
    by_torch: Callable[[], Tensor]
    ours: Callable[[], Tensor]


def linears() -> Iterator[Case]:
    for dtype in DTYPES:
        for rows, in_features, out_features in LINEARS:
            x, weight = torch.randn(rows, in_features).to(dtype), torch.randn(out_features, in_features).to(dtype)
            bias = torch.randn(out_features).to(dtype)
            yield Case(
                "linear",
                f"{rows}x{in_features}→{out_features}",
                dtype,
                lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias),
                lambda x=x, weight=weight, bias=bias: linear(x, weight, bias),
            )


def geglus() -> Iterator[Case]:
    def by_torch(x: Tensor) -> Tensor:
        values, gates = x.chunk(2, dim=-1)
        return values * F.gelu(gates)

    for dtype in DTYPES:
        for shape in GEGLUS:
            x = torch.randn(shape).to(dtype)
            yield Case("geglu", "x".join(map(str, shape)), dtype, lambda x=x: by_torch(x), lambda x=x: geglu(x))


def convolutions() -> Iterator[Case]:
    """With an addition after, next to torch's fastest: everything channels last, and the weights converted before.

    In 16 bits torch computes in float32, where it multiplies those several times faster.
    """
    multiplies: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for dtype in DTYPES:
        wide = dtype if multiplies else torch.float32
        for batch, channels, out_channels, width in CONVOLUTIONS:
            x = torch.randn(batch, channels, width, width).to(memory_format=torch.channels_last)
            weight = torch.randn(out_channels, channels, 3, 3) / (9 * channels) ** 0.5
            bias, add = torch.randn(out_channels), torch.randn(batch, out_channels)

            theirs = x.to(wide), weight.to(wide, memory_format=torch.channels_last), bias.to(wide), add.to(wide)
            given = x.to(dtype), weight.to(dtype), bias.to(dtype), add.to(dtype)

            def by_torch(tensors: tuple[Tensor, ...] = theirs) -> Tensor:
                x, weight, bias, add = tensors
                return F.conv2d(x, weight, bias, padding=1) + add[:, :, None, None]

            def ours(tensors: tuple[Tensor, ...] = given) -> Tensor:
                x, weight, bias, add = tensors
                return conv2d(x, weight, bias, add, padding=1)

            name = "conv2d 3x3 + add" + (" (torch: float32)" if wide != dtype else "")
            yield Case(name, f"{batch}x{channels}→{out_channels}, {width}²", dtype, by_torch, ours)


def group_norms() -> Iterator[Case]:
    for dtype in DTYPES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for channels, width in IMAGES:
                x = torch.randn(2, channels, width, width).to(dtype).to(memory_format=memory_format)
                weight, bias = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
                layout = "channels last" if memory_format is torch.channels_last else "channels first"
                yield Case(
                    "group_norm + silu",
                    f"2x{channels}x{width}² {layout}",
                    dtype,
                    lambda x=x, weight=weight, bias=bias: F.silu(F.group_norm(x, 32, weight, bias)),
                    lambda x=x, weight=weight, bias=bias: group_norm(x, 32, weight, bias, silu=True),
                )


def _heads(x: Tensor, heads: int) -> Tensor:
    return torch.unflatten(x, -1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _attention_by_torch(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    q, k, v = _heads(query, heads), _heads(key, heads), _heads(value, heads)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def attentions() -> Iterator[Case]:
    for dtype in DTYPES:
        for heads, queries, keys, features in ATTENTIONS:
            q, k, v = (torch.randn(1, tokens, heads * features).to(dtype) for tokens in (queries, keys, keys))
            yield Case(
                "attention",
                f"{heads} heads, {queries}x{keys}x{features}",
                dtype,
                lambda q=q, k=k, v=v, heads=heads: _attention_by_torch(q, k, v, heads),
                lambda q=q, k=k, v=v, heads=heads: attention(q, k, v, heads),
            )


def prompted_attentions() -> Iterator[Case]:
    for dtype in DTYPES:
        for heads, queries, features, keys in PROMPTS:
            q = torch.randn(2, queries, heads * features).to(dtype)
            k, v = (torch.randn(2, 77, heads * features).to(dtype) for _ in range(2))
            k2, v2 = (torch.randn(2, keys, heads * features).to(dtype) for _ in range(2))
            scale = torch.tensor(0.6)

            def by_torch(
                q: Tensor = q, k: Tensor = k, v: Tensor = v, k2: Tensor = k2, v2: Tensor = v2, heads: int = heads
            ) -> Tensor:
                return _attention_by_torch(q, k, v, heads) + 0.6 * _attention_by_torch(q, k2, v2, heads)

            yield Case(
                "attention + image prompt",
                f"2x{heads} heads, {queries}x(77 + {keys})x{features}",
                dtype,
                by_torch,
                lambda q=q, k=k, v=v, k2=k2, v2=v2, heads=heads, scale=scale: attention(
                    q, k, v, heads, second_key=k2, second_value=v2, second_scale=scale
                ),
            )


def positioned_attentions() -> Iterator[Case]:
    for dtype in DTYPES:
        for batch, heads, width, features in GRIDS:
            q, k, v = torch.randn(batch, width**2, 3 * heads * features).to(dtype).chunk(3, dim=-1)
            rows, columns = (torch.randn(batch, heads, width**2, width).to(dtype) for _ in range(2))

            def by_torch(
                q: Tensor = q,
                k: Tensor = k,
                v: Tensor = v,
                rows: Tensor = rows,
                columns: Tensor = columns,
                heads: int = heads,
            ) -> Tensor:
                bias = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
                return _attention_by_torch(q, k, v, heads, bias)

            yield Case(
                "attention + relative position",
                f"{batch}x{heads} heads, {width}²x{width}²x{features}",
                dtype,
                by_torch,
                lambda q=q, k=k, v=v, rows=rows, columns=columns, heads=heads: attention(
                    q, k, v, heads, row_bias=rows, column_bias=columns
                ),
            )


def window_attentions() -> Iterator[Case]:
    for dtype in DTYPES:
        for windows, heads, tokens in WINDOWS:
            q, k, v = torch.randn(windows, tokens, 3 * heads * 32).to(dtype).chunk(3, dim=-1)
            mask = torch.where(torch.rand(windows, 1, tokens, tokens) > 0.3, 0.0, -100.0).to(dtype)
            bias = torch.randn(heads, tokens, tokens).to(dtype)
            yield Case(
                "attention + bias + mask",
                f"{windows}x{heads} heads, {tokens}x{tokens}x32",
                dtype,
                lambda q=q, k=k, v=v, mask=mask, bias=bias, heads=heads: _attention_by_torch(
                    q, k, v, heads, mask + bias
                ),
                lambda q=q, k=k, v=v, mask=mask, bias=bias, heads=heads: attention(
                    q, k, v, heads, mask=mask, bias=bias
                ),
            )


def weighted_sums() -> Iterator[Case]:
    """The sums of a step: latents and prediction, or with new noise or an estimate of the step before."""
    factors = (0.98, -0.17, 0.05)
    for dtype in DTYPES:
        for width in LATENTS:
            for terms in (2, 3):
                given = [torch.randn(1, 4, width, width).to(dtype) for _ in range(terms)]

                def by_torch(tensors: list[Tensor] = given) -> Tensor:
                    total = tensors[0].float() * factors[0]
                    for tensor, factor in zip(tensors[1:], factors[1:], strict=False):
                        total = torch.add(total, tensor, alpha=factor)
                    return total.to(tensors[0].dtype)

                def ours(tensors: list[Tensor] = given) -> Tensor:
                    return weighted_sum(tensors, factors[: len(tensors)])

                yield Case("weighted_sum", f"{terms} of 1x4x{width}²", dtype, by_torch, ours)


def measure(case: Case, plan: Plan, flush: Callable[[], None]) -> dict[str, Any]:
    """Time both, in turns and with cold caches, and compare their errors with the result in float64."""
    with torch.inference_mode():
        candidates = [Candidate("torch", case.by_torch), Candidate("refiners", case.ours)]
        theirs, ours = compare(candidates, time_on_cpu, plan, flush)
    return {
        "operator": case.operator,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "torch": theirs.wall._asdict(),
        "refiners": ours.wall._asdict(),
        "speedup": 1 / ours.ratio,
        "rounds": ours.rounds,
    }


ALL = (
    linears,
    geglus,
    convolutions,
    group_norms,
    attentions,
    prompted_attentions,
    positioned_attentions,
    window_attentions,
    weighted_sums,
)


def table(report: dict[str, Any]) -> str:
    """Lay the report out in Markdown."""
    lines = [
        *heading(report),
        "Cold caches, both in turns; best and median of each, the median of the ratios.",
        "",
        "| operator | shape | dtype | torch, ms | refiners, ms | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["cases"]:
        figures = [f"{row[name]['best'] * 1e3:.3g} / {row[name]['median'] * 1e3:.3g}" for name in ("torch", "refiners")]
        lines.append(
            f"| {row['operator']} | {row['shape']} | {row['dtype']} | {' | '.join(figures)} | {row['speedup']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_outputs(parser)
    parser.add_argument("--min-time", type=float, default=0.3, metavar="SECONDS", help="how long each runs at least")
    parser.add_argument("--only", choices=[cases.__name__ for cases in ALL], help="measure these alone")
    arguments = parser.parse_args(argv)
    report = environment() | {"cases": list[dict[str, Any]]()}
    flush, plan = make_flush("cpu"), Plan(arguments.min_time, max_rounds=200)
    for cases in (each for each in ALL if arguments.only in (None, each.__name__)):
        report["cases"] += [measure(case, plan, flush) for case in cases()]
    write(report, table, arguments)


if __name__ == "__main__":
    main()
