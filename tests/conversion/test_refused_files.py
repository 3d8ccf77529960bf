"""Files that are against their format, or could fill any memory, are refused when they are opened."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from refiners.conversion.checkpoint import Checkpoint

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}


def write(path: Path, header: bytes, data: bytes = bytes(16)) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {**ONE, "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, "has 0 bytes"),
        ({"a": {**ONE, "shape": [2**62, 4], "data_offsets": [0, 0]}}, "has 0 bytes"),
        ({"a": {**ONE, "shape": [2**63]}}, "no dtype, shape and place of 'a'"),
        ({"a": {**ONE, "shape": [1] * 65 + [2]}}, "no dtype, shape and place of 'a'"),
        ({"a": {**ONE, "shape": [2.0]}}, "no dtype, shape and place of 'a'"),
        ({"a": {**ONE, "shape": [True, 2]}}, "no dtype, shape and place of 'a'"),
        ({"a": {**ONE, "shape": {}}}, "no dtype, shape and place of 'a'"),
        ({"a": {**ONE, "data_offsets": [0, 4, 8]}}, "no dtype, shape and place of 'a'"),
        ({"a": ONE, "b": ONE}, "'b' overlaps 'a'"),
        ({"a": ONE, "b": {**TWO, "data_offsets": [4, 12]}}, "'b' overlaps 'a'"),
        ({"\x1b[2J": {}}, r"place of '\\x1b\[2J'"),
        ({"a" * 10_000: {}}, r"place of 'a{100}\.\.\. \(10000 characters\)'"),
        ({"__metadata__": [], "a": ONE}, "its metadata must be texts by their names"),
        ({"__metadata__": {"a": 1}, "a": ONE}, "its metadata must be texts by their names"),
    ],
)
def test_a_header_that_is_against_the_format(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "weights.safetensors", json.dumps(entries).encode())
    with pytest.raises(ValueError, match=message):
        Checkpoint(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": {}, "b": {}, "a": {}}', r"its header is no JSON \(it has 'a' twice\)"),
        (b'{"a": {"dtype": "F32", "dtype": "F64"}}', r"its header is no JSON \(it has 'dtype' twice\)"),
        (b"[" * 100_000, "its header is no JSON"),
    ],
)
def test_a_header_that_is_no_json(header: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoint(write(tmp_path / "weights.safetensors", header))


def test_what_is_odd_but_clear_is_read(tmp_path: Path) -> None:
    entries = {"__metadata__": None, "a": {**TWO, "data_offsets": [9, 17]}, "b": {**ONE, "shape": [0, 2**40]}}
    entries["b"]["data_offsets"] = [12, 12]
    path = write(tmp_path / "weights.safetensors", json.dumps(entries).encode(), bytes(30))
    with Checkpoint(path) as checkpoint:
        assert checkpoint.read("a").tolist() == checkpoint.view("a").tolist() == [0, 0]
        assert checkpoint.view("b").shape == (0, 2**40)


def test_a_compressed_file_of_torch_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "weights.pt")
    with (
        zipfile.ZipFile(tmp_path / "weights.pt") as source,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for each in source.infolist():
            target.writestr(each.filename, source.read(each))
    with pytest.raises(ValueError, match=r"small.pt is compressed, and torch.save compresses nothing"):
        Checkpoint(tmp_path / "small.pt")


@pytest.mark.parametrize("is_zip", [False, True])
def test_one_number_that_stands_for_many_is_refused(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1).expand(2**20, 2**20)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"a has 4398046511104 bytes, the whole file has \d+"):
        Checkpoint(path)


def test_a_tensor_without_values_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(2, device="meta")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="a has no values: it was saved from the device meta"):
        Checkpoint(tmp_path / "weights.pt")
