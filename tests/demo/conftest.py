"""The demo needs the packages of its extra; its layers are so small that threads only get in each other's way."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Run on one thread, and give the others back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
