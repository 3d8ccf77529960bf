"""Measure the U-Net of Stable Diffusion 1.5 next to diffusers, and how fast models are built and loaded."""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from refiners.bench.environment import add_outputs, environment, heading, write
from refiners.bench.measure import Candidate, Plan, Summary, compare, time_on_cpu
from refiners.conversion.loading import load_into, to_diffusers
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet

VIEWS = ("view", "transpose", "t.", "slice", "select", "unsqueeze", "squeeze", "expand", "permute", "alias", "split")


class CountCalls(TorchDispatchMode):
    """Count the calls that reach torch's kernels: all, and those that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.computing = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".", 1)[-1]
        self.calls += 1
        self.computing += not name.startswith(VIEWS)
        return func(*args, **(kwargs or {}))


class Step(NamedTuple):
    """What is measured: a call of the U-Net for two samples of `size`² latents, as guidance needs."""

    dtype: torch.dtype
    size: int
    rounds: int

    @classmethod
    def parse(cls, text: str) -> Step:
        dtype, size, rounds = text.split(":")
        return cls(getattr(torch, dtype), int(size), int(rounds))


def measure(what: Step) -> dict[str, Any]:
    """Time a step, all candidates in turns, and count its calls, which are the same on small images."""
    dtype, size, rounds = what
    ours = SD1UNet(4, dtype=dtype).requires_grad_(False)
    plain, channels_last = (make_theirs(ours, each) for each in (torch.contiguous_format, torch.channels_last))
    x, text = torch.randn(2, 4, size, size, dtype=dtype), torch.randn(2, 77, 768, dtype=dtype)
    x_last = x.to(memory_format=torch.channels_last)
    shape = list(x.shape)
    timesteps = torch.arange(900, 0, -30)
    calls = 0

    def run_ours() -> Tensor:
        nonlocal calls
        calls += 1
        ours.set_timestep(timesteps[calls % len(timesteps)].unsqueeze(0))
        ours.set_clip_text_embedding(text)
        return ours(x)

    candidates = [
        Candidate("diffusers", lambda: plain(x, timesteps[3], encoder_hidden_states=text).sample),
        Candidate(
            "diffusers, channels last", lambda: channels_last(x_last, timesteps[3], encoder_hidden_states=text).sample
        ),
        Candidate("refiners", run_ours),
    ]
    with torch.no_grad():
        results = compare(candidates, time_on_cpu, Plan(0, rounds, rounds), lambda: None)
        x, x_last = x[..., :8, :8].contiguous(), x_last[..., :8, :8].contiguous(memory_format=torch.channels_last)
        counts: dict[str, list[int]] = {}
        for candidate in candidates:
            with CountCalls() as count:
                candidate.run()
            counts[candidate.name] = [count.calls, count.computing]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "shape": shape,
        "times": {result.name: result.wall._asdict() for result in results},
        "calls": counts,
    }


def make_theirs(ours: SD1UNet, memory_format: torch.memory_format) -> Any:
    """Give diffusers' U-Net with the weights of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers: Any = import_module("diffusers")
    with torch.device("meta"):
        theirs: Any = diffusers.UNet2DConditionModel(
            cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    theirs.load_state_dict(to_diffusers(ours.state_dict()), assign=True)
    return theirs.to(memory_format=memory_format).requires_grad_(False)


def loading(folder: Path, rounds: int = 8) -> dict[str, Any]:
    """Time the loading of a U-Net from one file of float16 in turns with reading it: from disk, and from memory."""
    path = folder / "unet.safetensors"
    save_to_safetensors(path, to_diffusers(SD1UNet(4, dtype=torch.float16).state_dict()))
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    for cache in ("cold", "warm"):
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for run in (read, read_anew, load):
                if cache == "cold":
                    drop(path)
                start = time.perf_counter()
                run(path)
                samples.setdefault(run.__name__, []).append(time.perf_counter() - start)
        seconds[cache] = {name.replace("_", " "): Summary.of(values)._asdict() for name, values in samples.items()}
    return {"bytes": path.stat().st_size, "seconds": seconds}


def read(path: Path, chunk: int = 16 << 20) -> None:
    """Read a file, as fast as one can, into the same memory."""
    buffer = bytearray(chunk)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_anew(path: Path) -> None:
    """Read a file into new memory, as whoever keeps what is in it must."""
    target = memoryview(cast(Any, torch.empty(path.stat().st_size, dtype=torch.uint8).numpy()))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(target[: 16 << 20]):
            target = target[count:]


def load(path: Path) -> None:
    """Load the file into a U-Net."""
    load_into(SD1UNet(4, device="meta", dtype=torch.float16), path)


def drop(path: Path) -> None:
    """Let the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def building() -> dict[str, dict[str, float]]:
    """Time the construction of models without weights; the best and the median of twenty."""
    samples: dict[str, list[float]] = {}
    for _ in range(20):
        for make in (SD1UNet, SDXLUNet):
            gc.collect()  # chains know their parents: the model before is in the way until now
            start = time.perf_counter()
            make(4, device="meta")
            samples.setdefault(make.__name__, []).append(time.perf_counter() - start)
    return {name: Summary.of(values)._asdict() for name, values in samples.items()}


def table(report: dict[str, Any]) -> str:
    """Lay the report out in Markdown."""
    lines = [
        *heading(report, "diffusers"),
        "## A step of the U-Net of Stable Diffusion 1.5",
        "",
        "Two samples, as guidance needs, in turns; best and median. The last column counts the calls of torch's"
        " functions that compute something; the other ones give views.",
        "",
        "| latents | dtype | | seconds | of diffusers' best | calls |",
        "|---|---|---|---|---|---|",
    ]
    for case in report["steps"]:
        times = case["times"]
        best = min(times[name]["median"] for name in times if name != "refiners")
        for name, result in times.items():
            lines.append(
                f"| {'x'.join(map(str, case['shape']))} | {case['dtype']} | {name} | {result['best']:.2f} /"
                f" {result['median']:.2f} | {result['median'] / best:.2f} | {case['calls'][name][1]} |"
            )
    if "loading" in report:
        size = report["loading"]["bytes"]
        lines += [
            "",
            f"## Loading {size / 1e9:.2f} GB of float16",
            "",
            "Best and median; the last column compares the best.",
            "",
            "| file | | seconds | GB/s | of the rate of reading |",
            "|---|---|---|---|---|",
        ]
        for cache, times in report["loading"]["seconds"].items():
            reading = times["read"]["best"]
            for name, result in times.items():
                best, median = result["best"], result["median"]
                rates = f"{size / best / 1e9:.2f} / {size / median / 1e9:.2f}"
                lines.append(f"| {cache} | {name} | {best:.2f} / {median:.2f} | {rates} | {reading / best:.2f} |")
    lines += ["", "## Building on the meta device", "", "| | ms, best / median |", "|---|---|"]
    lines += [f"| {name} | {s['best'] * 1e3:.0f} / {s['median'] * 1e3:.0f} |" for name, s in report["building"].items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_outputs(parser)
    parser.add_argument(
        "--steps",
        nargs="*",
        type=Step.parse,
        default=[Step(torch.float32, 64, 5), Step(torch.bfloat16, 64, 5)],
        metavar="DTYPE:SIZE:ROUNDS",
        help="dtypes, heights of latents, and how often each runs (default: float32:64:5 bfloat16:64:5)",
    )
    parser.add_argument("--skip-loading", action="store_true", help="write no file of 1.7 GB")
    arguments = parser.parse_args(argv)
    report = environment("diffusers") | {"building": building()}
    if not arguments.skip_loading:
        with tempfile.TemporaryDirectory() as folder:
            report["loading"] = loading(Path(folder))
    report["steps"] = [measure(step) for step in arguments.steps]
    write(report, table, arguments)


if __name__ == "__main__":
    main()
