"""Timing: cases take turns, and the switch of the kernels is put back."""

import pytest

from refiners.demo.timing import portable, time_alternately
from refiners.ops.library import native


def test_cases_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    timings = time_alternately({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, num_rounds=2)
    assert calls == ["a", "b"] * 3
    assert [(timing.name, len(timing.seconds)) for timing in timings] == [("a", 2), ("b", 2)]


def test_a_timing_prints_milliseconds() -> None:
    (timing,) = time_alternately({"nothing": lambda: None}, num_rounds=1)
    assert str(timing._replace(seconds=[0.002, 0.001, 0.004])).split() == [
        "nothing",
        "median",
        "2.0",
        "ms,",
        "best",
        "1.0",
        "ms",
    ]


def test_portable_switches_the_kernels_off_and_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    switches: list[tuple[str, bool]] = []
    monkeypatch.setattr(native, "use_kernels", lambda *switch: switches.append(switch))
    enabled = "lora_linear" not in native.settings.disabled

    def fail() -> None:
        assert switches == [("lora_linear", False)]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        portable(fail)()
    assert switches == [("lora_linear", False), ("lora_linear", enabled)]
