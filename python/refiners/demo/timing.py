"""How long one denoising step takes: without LoRA, and with LoRA by the native kernels and by torch's own functions."""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

from refiners.ops.library import native

_ROUNDS = 5


class Timing(NamedTuple):
    """What was measured, and how long it took in each round, in seconds."""

    name: str
    seconds: list[float]

    def __str__(self) -> str:
        return f"{self.name:<22} median {1000 * median(self.seconds):6.1f} ms, best {1000 * min(self.seconds):6.1f} ms"


def time_alternately(cases: dict[str, Callable[[], object]], num_rounds: int = _ROUNDS) -> list[Timing]:
    """Time cases in turn, so that what else the machine does meets all of them; the first round is not counted."""
    timings = [Timing(name, []) for name in cases]
    for _ in range(num_rounds + 1):
        for timing, case in zip(timings, cases.values()):
            start = perf_counter()
            case()
            timing.seconds.append(perf_counter() - start)
    return [Timing(timing.name, timing.seconds[1:]) for timing in timings]


def portable(case: Callable[[], object]) -> Callable[[], object]:
    """Return a case that runs without the native kernels."""

    def run() -> object:
        native.use_kernels("lora_linear", False)
        try:
            return case()
        finally:
            native.use_kernels("lora_linear", "lora_linear" not in native.settings.disabled)

    return run
