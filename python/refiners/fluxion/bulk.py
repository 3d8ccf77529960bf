"""Building thousands of modules at once."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collections_paused() -> Generator[None, None, None]:
    """Hold the cyclic garbage collector back for some milliseconds.

    A model, or a set of updates, is tens of thousands of small objects that all stay alive: collections among them find
    nothing, and take longer than the work itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
