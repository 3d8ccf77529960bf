"""Candidates timed in turn, in one process, so that all of them see the same machine."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

_MIN_FLUSH, _MAX_FLUSH = 64 << 20, 1 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Candidate(NamedTuple):
    """A way to do the work."""

    name: str
    run: Callable[[], object]


class Summary(NamedTuple):
    """Order statistics of repeated times, in seconds: a preempted run moves a mean, never a median."""

    best: float
    median: float
    spread: float  # the distance between the quartiles, as a share of the median

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        median = statistics.median(samples)
        if len(samples) < 2 or median == 0:
            return cls(min(samples), median, 0.0)
        quartiles = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(min(samples), median, (quartiles[2] - quartiles[0]) / median)


class Measurement(NamedTuple):
    """The figures of a candidate; `ratio` is the median over the rounds of its time / the first candidate's time."""

    name: str
    wall: Summary
    cpu: Summary
    ratio: float
    rounds: int


class Plan(NamedTuple):
    """When to stop: every candidate has run `min_rounds` times and for `min_time` seconds, or `max_rounds` times."""

    min_time: float
    min_rounds: int = 5
    max_rounds: int = 100


Timer = Callable[[Callable[[], object]], tuple[float, float]]


def time_on_cpu(work: Callable[[], object]) -> tuple[float, float]:
    """Give the wall time and the CPU time of all threads, in seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def time_on_cuda(work: Callable[[], object]) -> tuple[float, float]:
    """Give the time between two events on the device, and the CPU time of the launches."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    cpu = time.thread_time()
    work()
    cpu = time.thread_time() - cpu
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3, cpu


def make_timer(device: str) -> Timer:
    """Give the timer of a device."""
    return time_on_cuda if device == "cuda" else time_on_cpu


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Give the size of the largest data cache that the system describes, 0 where it describes none."""
    sizes = [0]
    for index in folder.glob("index*"):
        match = re.fullmatch(r"(\d+)([KMG]?)\s*", (index / "size").read_text())
        if match and (index / "type").read_text().strip() != "Instruction":
            sizes.append(int(match[1]) * _UNITS[match[2]])
    return max(sizes)


def make_flush(device: str) -> Callable[[], None]:
    """Give a function that overwrites the caches of a device, twice their size."""
    if device == "cuda":
        size = 2 * int(torch.cuda.get_device_properties(device).L2_cache_size)  # pyright: ignore[reportUnknownArgumentType]
    else:
        size = min(max(2 * cache_bytes(), _MIN_FLUSH), _MAX_FLUSH)
    buffer = torch.zeros(size // 4, dtype=torch.int32, device=device)

    def flush() -> None:
        buffer.add_(1)

    return flush


def compare(
    candidates: Sequence[Candidate], timer: Timer, plan: Plan, before_each: Callable[[], object]
) -> list[Measurement]:
    """Time every candidate once a round, after `before_each`; each round begins with the next one.

    Args:
        candidates: What to time; the first is the baseline.
        timer: Gives wall and CPU time of a call.
        plan: When to stop.
        before_each: Called untimed before each call, to empty the caches, say.

    Returns:
        The figures, in the order of the candidates.

    Raises:
        ValueError: If there is no candidate.
    """
    if not candidates:
        raise ValueError("candidates must not be empty")
    for candidate in candidates:
        candidate.run()
    walls: list[list[float]] = [[] for _ in candidates]
    cpus: list[list[float]] = [[] for _ in candidates]
    rounds = 0
    while rounds < plan.max_rounds and (rounds < plan.min_rounds or min(map(sum, walls)) < plan.min_time):
        for i in range(len(candidates)):
            which = (rounds + i) % len(candidates)
            before_each()
            wall, cpu = timer(candidates[which].run)
            walls[which].append(wall)
            cpus[which].append(cpu)
        rounds += 1
    return [
        Measurement(
            candidate.name,
            Summary.of(wall),
            Summary.of(cpu),
            statistics.median(mine / base for mine, base in zip(wall, walls[0], strict=True)),
            rounds,
        )
        for candidate, wall, cpu in zip(candidates, walls, cpus, strict=True)
    ]
