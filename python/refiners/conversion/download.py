"""Download files whole or not at all, and know them by their hash."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refiners.conversion.optional import optional

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30  # seconds without an answer


@contextmanager
def complete_or_absent(destination: Path) -> Generator[Path, None, None]:
    """Give a temporary path next to a destination, and move it there if the block ends well.

    Creates the folders above it. If the block fails, the temporary file is removed and the destination is as it was.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal; it is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def download_file_url(url: str, destination: Path) -> None:
    """Download a file, with a progress bar, creating the folders above it.

    The file appears under its name only once it is complete.

    Args:
        url: Where it is, by HTTP or HTTPS.
        destination: The path to write to; an existing file is replaced.

    Raises:
        ImportError: If `requests` or `tqdm` is not installed.
        requests.HTTPError: If the server answers with an error.
        OSError: If fewer bytes came than were announced.
    """
    requests, tqdm = optional("requests"), optional("tqdm")
    with (
        requests.get(url, stream=True, timeout=_TIMEOUT) as response,
        complete_or_absent(Path(destination)) as temporary,
    ):
        response.raise_for_status()
        size = _announced_size(response)
        bar = tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=Path(destination).name)
        received = 0
        with temporary.open("wb") as file, bar:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if size is not None and received != size:
            raise OSError(f"{url}: {received} bytes came, {size} were announced")


def _announced_size(response: Any) -> int | None:
    """Return the number of bytes to come, None if it is unknown, or is that of compressed data."""
    if "content-encoding" in response.headers or "content-length" not in response.headers:
        return None
    return int(response.headers["content-length"])
