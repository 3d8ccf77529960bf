"""Ctrl-C, noticed at the next step at the latest."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noticed_interruption() -> Generator[Callable[[], None]]:
    """Give a function that raises `KeyboardInterrupt` if there was one.

    It is raised at once as well; but one that comes up in the destructor of an object, or in native code that calls
    back, may be lost on its way.
    """
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # signals arrive nowhere else
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of jobs in the background
        yield check
        return

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
