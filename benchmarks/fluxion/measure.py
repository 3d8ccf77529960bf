"""Time functions against each other, in turns, so that a busy machine hurts them alike."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per round."""

    seconds: list[float]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True)
class Stopwatch:
    """How to measure.

    Attributes:
        quick: Whether to do next to nothing: this shows that a case runs, and measures nothing.
        processor_time: Whether to count processor time rather than wall time, which a busy machine lengthens more.
    """

    quick: bool = False
    processor_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        return process_time if self.processor_time else perf_counter

    def rounds(self, wanted: int) -> int:
        """Give the number of rounds or calls to do, if so many are wanted."""
        return min(wanted, 2) if self.quick else wanted

    def in_turns(self, functions: dict[str, Callable[[], Any]], rounds: int, calls: int = 1) -> dict[str, Timing]:
        """Time functions in turns.

        Args:
            functions: What to time, by name.
            rounds: How often each function has its turn.
            calls: The number of calls per turn; the time is divided by it.

        Returns:
            The seconds per call of each function, in every round.
        """
        clock, calls = self.clock, self.rounds(calls)
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(self.rounds(rounds)):
            gc.collect()
            for name, function in functions.items():
                start = clock()
                for _ in range(calls):
                    function()
                seconds[name].append((clock() - start) / calls)
        return {name: Timing(values) for name, values in seconds.items()}

    def on_fresh(self, make: Callable[[], Any], function: Callable[[Any], Any], rounds: int) -> Timing:
        """Time a function on a new argument each round; making the argument is not timed."""
        clock, seconds = self.clock, list[float]()
        for _ in range(self.rounds(rounds)):
            argument = make()
            gc.collect()
            start = clock()
            function(argument)
            seconds.append(clock() - start)
        return Timing(seconds)
