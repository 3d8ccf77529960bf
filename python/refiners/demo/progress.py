"""Progress bars."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from refiners.demo.errors import DemoError

T = TypeVar("T")


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield items and draw a bar of how many are done, and how long the rest will take.

    Raises:
        DemoError: If rich, which draws the bars, is not installed.
    """
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise DemoError.missing("rich") from error
    columns = TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        yield from progress.track(items, total=total, description=description)
