"""Files of weights: where they are published, where they lie here, and the hash they have."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from refiners.conversion.download import complete_or_absent, download_file_url, sha256_of
from refiners.conversion.optional import optional

logger = logging.getLogger(__name__)


class Hub:
    """A published file of weights, and its place in the local folder of weights.

    Nothing is downloaded before `download` or `hf_cache_path`, and nobody is asked before one of the others.

    Args:
        repo_id: The repository on the Hugging Face Hub; for a file from elsewhere, the folder to put it in.
        filename: The path of the file in the repository.
        revision: The commit, branch or tag.
        expected_sha256: The hash of the file, in hexadecimal, if it is known.
        download_url: Where the file is, if it is not on the Hugging Face Hub.
    """

    def __init__(
        self,
        repo_id: str,
        filename: str,
        revision: str = "main",
        expected_sha256: str | None = None,
        download_url: str | None = None,
    ) -> None:
        self.repo_id = repo_id
        self.filename = filename
        self.revision = revision
        self.expected_sha256 = None if expected_sha256 is None else expected_sha256.lower()
        self.download_url = download_url

    def __repr__(self) -> str:
        return f"Hub({self.repo_id}/{self.filename} at {self.download_url or self.revision})"

    @staticmethod
    def hub_location() -> Path:
        """Return the local folder of weights: the environment variable REFINERS_HUB_PATH, or `tests/weights`."""
        return Path(os.environ.get("REFINERS_HUB_PATH", "tests/weights"))

    @property
    def local_path(self) -> Path:
        """Where the file is, or will be, in the local folder of weights."""
        return self.hub_location() / self.repo_id / self.filename

    def _check_on_hub(self) -> None:
        if self.download_url is not None:
            raise AssertionError(f"{self.repo_id}/{self.filename} is not available on the hub")

    @property
    def hf_url(self) -> str:
        """The address of the file on the Hugging Face Hub.

        Raises:
            AssertionError: If the file is from elsewhere.
        """
        self._check_on_hub()
        return optional("huggingface_hub").hf_hub_url(self.repo_id, self.filename, revision=self.revision)

    @property
    def hf_cache_path(self) -> Path:
        """The file in the cache of the Hugging Face Hub; it is downloaded if it is not there.

        Raises:
            AssertionError: If the file is from elsewhere.
        """
        self._check_on_hub()
        return Path(optional("huggingface_hub").hf_hub_download(self.repo_id, self.filename, revision=self.revision))

    @property
    def hf_metadata(self) -> Any:
        """What the Hugging Face Hub says of the file: commit, etag, location and size."""
        return optional("huggingface_hub").get_hf_file_metadata(self.hf_url)

    @property
    def hf_sha256_hash(self) -> str:
        """The SHA-256 of the file on the Hugging Face Hub, in lower case.

        Raises:
            ValueError: If the etag is not one, as for small files that are not in its large file storage.
        """
        etag = str(self.hf_metadata.etag or "").removeprefix("W/").strip('"').lower()
        if not re.fullmatch(r"[0-9a-f]{64}", etag):
            raise ValueError(f"{self.hf_url} has no SHA-256: its etag must be 64 hexadecimal digits, got {etag!r}")
        return etag

    @property
    def local_sha256_hash(self) -> str:
        """The SHA-256 of the local file, in lower case.

        Raises:
            AssertionError: If there is no local file.
        """
        if not self.local_path.is_file():
            raise AssertionError(f"{self.local_path} does not exist")
        return sha256_of(self.local_path)

    def check_local_hash(self) -> bool:
        """Tell whether the local file has the expected hash, with a warning if not; True if none is expected."""
        return self._check_hash("local", lambda: self.local_sha256_hash)

    def check_remote_hash(self) -> bool:
        """The same of the file on the Hugging Face Hub."""
        return self._check_hash("remote", lambda: self.hf_sha256_hash)

    def _check_hash(self, where: str, compute: Any) -> bool:
        if self.expected_sha256 is None:
            logger.warning(f"{self.local_path}: no hash is expected, the {where} one is not checked")
            return True
        found = compute()
        if found != self.expected_sha256:
            logger.warning(f"{self.local_path}: the {where} hash is {found}, expected {self.expected_sha256}")
        return found == self.expected_sha256

    def download(self) -> None:
        """Download the file to its local place, unless it is there.

        A file from the Hugging Face Hub is a link into its cache (a copy where links cannot be made).

        Raises:
            AssertionError: If the file that came does not have the expected hash; it is not put in place.
        """
        path = self.local_path
        if path.is_file():
            logger.warning(f"{path} already exists")
            return
        if self.download_url is None:
            source = self.hf_cache_path
            self._check_download(source)
            _link_or_copy(source, path)
            return
        with complete_or_absent(path) as temporary:
            download_file_url(self.download_url, temporary)
            self._check_download(temporary)

    def _check_download(self, file: Path) -> None:
        if self.expected_sha256 is None:
            logger.warning(f"{self.local_path}: no hash is expected, what came is not checked")
            return
        found = sha256_of(file)
        if found != self.expected_sha256:
            raise AssertionError(
                f"{self.local_path}: the hash of what came is {found}, expected {self.expected_sha256}"
            )


def _link_or_copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.unlink(missing_ok=True)  # a link whose file is gone
    try:
        destination.symlink_to(source.resolve())
    except OSError:  # some systems keep links for administrators
        with complete_or_absent(destination) as temporary:
            shutil.copyfile(source, temporary)
