"""Repositories of whole models on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from refiners.conversion.optional import optional

_PATTERNS = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]


def download_snapshot(repository: str) -> Path:
    """Download the models of a repository into the cache of `huggingface_hub`, unless they are there already.

    Only safetensors and JSON files are taken.

    Args:
        repository: The repository, as `owner/name`, or `owner/name@revision` for another revision than `main`.

    Returns:
        The folder.

    Raises:
        ValueError: If this is no name of a repository.
        ImportError: If the extra `conversion` is not installed.
    """
    name, _, revision = repository.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"repository must be owner/name or owner/name@revision, got {repository!r}")
    hub = optional("huggingface_hub")
    return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS))
