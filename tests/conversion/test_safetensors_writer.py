"""Files are written as the reference implementation reads them: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Size, Tensor

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.safetensors_file import DTYPES
from refiners.conversion.safetensors_writer import Piece, write_safetensors


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    tensors = {
        f"{i}.{dtype}": torch.randint(0, 2, shape).to(dtype)
        for dtype in DTYPES.values()
        for i, shape in enumerate([(), (0,), (3, 5), (2, 1, 3, 1)])
    }
    tensors["transposed"] = torch.randn(4, 3).T
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {key: Piece.of(value) for key, value in tensors.items()}, {"é": '"ü"'})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert torch.equal(
            found[key].contiguous().view(-1).view(torch.uint8), value.contiguous().view(-1).view(torch.uint8)
        )
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"é": '"ü"'}


def test_a_piece_of_a_file_in_another_shape(tmp_path: Path) -> None:
    x, path = torch.randn(2, 6), tmp_path / "a.safetensors"
    write_safetensors(path, {"x": Piece.of(x)}, {})
    with Checkpoint(path) as source:
        write_safetensors(tmp_path / "b.safetensors", {"y": Piece.read(source, "x").view(3, -1, 1)}, {})
    assert torch.equal(load_file(tmp_path / "b.safetensors")["y"], x.view(3, 4, 1))


def failing() -> Tensor:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("piece", "error", "message"),
    [
        (Piece(Size([2]), torch.float32, failing), OSError, "the disk is gone"),
        (
            Piece(Size([2]), torch.float32, lambda: torch.zeros(3)),
            ValueError,
            r"must be \(2,\) in torch.float32, got \(3,\)",
        ),
        (Piece(Size([2]), torch.float32, lambda: torch.zeros(2).half()), ValueError, "got .* in torch.float16"),
        (Piece(Size([2]), torch.complex64, failing), TypeError, "'x' is of torch.complex64, expected one of"),
    ],
    ids=["disk", "shape", "dtype", "complex"],
)
def test_a_failure_leaves_what_was_there(piece: Piece, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        write_safetensors(path, {"a": Piece.of(torch.zeros(9)), "x": piece}, {})
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_metadata_must_be_texts(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must map texts to texts, got 3 for 'a'"):
        write_safetensors(tmp_path / "a.safetensors", {}, {"a": 3})  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []
