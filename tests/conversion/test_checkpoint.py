"""Files of weights are opened by their headers, and read one tensor at a time."""

import collections
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Size, Tensor

from refiners.conversion.checkpoint import Checkpoint, JoinedSource, StateDict

DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def state() -> dict[str, Tensor]:
    values = torch.arange(24.0).view(4, 6) - 7
    return {str(dtype): values.to(dtype) for dtype in DTYPES} | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "odd": torch.ones(3, dtype=torch.uint8),
    }


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.double(), b.double())


@pytest.fixture(params=[".safetensors", ".sft", ".ckpt", ".bin", ".pt", ".pth"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same tensors in a file of each format."""
    path = tmp_path / f"weights{request.param}"
    if request.param in (".safetensors", ".sft"):
        safetensors.torch.save_file(state(), path, {"about": "a test"})
    else:
        torch.save({"state_dict": state(), "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    return path


def test_shapes_and_dtypes_are_known_before_a_tensor_is_read(saved: Path) -> None:
    with Checkpoint(saved) as checkpoint:
        assert checkpoint.shapes == {key: tensor.shape for key, tensor in state().items()}
        assert {key: info.dtype for key, info in checkpoint.infos.items()} == {k: t.dtype for k, t in state().items()}
        assert set(checkpoint) == set(state()) and len(checkpoint) == len(state())
        assert "scalar" in checkpoint and "other" not in checkpoint
        assert checkpoint.files == [saved]
        if saved.suffix == ".safetensors":
            assert checkpoint.metadata == {"about": "a test"}


def test_tensors_are_read_as_they_were_saved(saved: Path) -> None:
    with Checkpoint(saved) as checkpoint:
        read = {key: checkpoint.read(key) for key in checkpoint}
        for key, tensor in state().items():
            assert same(read[key], tensor), key
            assert same(checkpoint.view(key), tensor), key
            assert read[key].is_contiguous()
    saved.unlink()
    assert same(read["torch.float32"], state()["torch.float32"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", DTYPES[:6], ids=str)
def test_floating_point_is_cast(saved: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    with Checkpoint(saved) as checkpoint:
        assert same(checkpoint.read(str(stored), dtype=dtype), state()[str(stored)].to(dtype))


def test_casting_in_pieces_is_casting(tmp_path: Path) -> None:
    from refiners.conversion import safetensors_file

    tensor = torch.randn(5, 1 + safetensors_file._CHUNK // 4)
    safetensors.torch.save_file({"large": tensor}, tmp_path / "weights.safetensors")
    with Checkpoint(tmp_path / "weights.safetensors") as checkpoint:
        assert torch.equal(checkpoint.read("large", dtype=torch.bfloat16), tensor.bfloat16())
        assert torch.equal(checkpoint.read("large", rows=(1, 4), dtype=torch.float16), tensor[1:4].half())


def test_rows_are_read_alone(saved: Path) -> None:
    with Checkpoint(saved) as checkpoint:
        for rows in ((0, 4), (1, 3), (3, 4), (2, 2)):
            for dtype in (None, torch.float32):
                expected = state()["torch.float16"][slice(*rows)]
                assert same(checkpoint.read("torch.float16", rows=rows, dtype=dtype), expected.to(dtype))
        for rows in ((0, 5), (-1, 2), (3, 2)):
            with pytest.raises(ValueError, match=r"rows must be a range within those of 'torch.float16' of shape"):
                checkpoint.read("torch.float16", rows=rows)
        with pytest.raises(ValueError, match="rows must be"):
            checkpoint.read("scalar", rows=(0, 1))


def test_writing_to_what_was_read_or_viewed_leaves_the_file(saved: Path) -> None:
    before = saved.read_bytes()
    with Checkpoint(saved) as checkpoint:
        checkpoint.read("torch.float32").zero_()
        assert same(checkpoint.read("torch.float32"), state()["torch.float32"])
    with Checkpoint(saved) as checkpoint:
        checkpoint.view("torch.float32").zero_()
    assert saved.read_bytes() == before


def test_an_unknown_key_is_named(saved: Path) -> None:
    with Checkpoint(saved) as checkpoint, pytest.raises(KeyError, match="has no tensor 'other'"):
        checkpoint.read("other")


def test_tensors_are_read_to_the_cpu_within_another_default_device(saved: Path) -> None:
    expected = state()["torch.float32"]
    with torch.device("meta"), Checkpoint(saved) as checkpoint:
        assert same(checkpoint.read("torch.float32"), expected)
        assert same(checkpoint.view("torch.float32"), expected)
        assert checkpoint.read("torch.float32", device="meta").is_meta


@pytest.mark.parametrize(
    "content",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "ema": {"w": torch.zeros(1)}},
        lambda tensors: {"model": tensors},
        lambda tensors: {"params_ema": tensors},
        lambda tensors: {"a": {"b": tensors["a.b"]}, "c": tensors["c"], "n": 1},
        lambda tensors: collections.OrderedDict(tensors),
    ],
)
def test_nested_dictionaries_are_unpacked(tmp_path: Path, content: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {"a.b": torch.ones(2), "c": torch.zeros(3)}
    torch.save(content(tensors), tmp_path / "weights.pt")
    with Checkpoint(tmp_path / "weights.pt") as checkpoint:
        assert checkpoint.shapes == {"a.b": Size([2]), "c": Size([3])}


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = {"w": torch.ones(2)}
    content["again"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cyclic(), "holds a dictionary that holds itself"),
        ({"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)}, "holds a.b twice"),
        ({"w": torch.eye(3).to_sparse()}, "w is no dense tensor but sparse_coo"),
        ({"epoch": 3}, "holds no tensors"),
    ],
    ids=["cyclic", "twice", "sparse", "none"],
)
def test_what_cannot_be_weights_is_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path / "weights.pt")


def test_a_file_of_the_old_format_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "weights.bin", _use_new_zipfile_serialization=False)
    with Checkpoint(tmp_path / "weights.bin") as checkpoint:
        assert checkpoint.read("a").tolist() == [0, 1, 2]


RAN: list[str] = []


class Callback:
    """An object that trainers save with the weights; unpickling it as it asks would run code."""

    def __init__(self) -> None:
        self.best = 1.0

    def __setstate__(self, state: object) -> None:
        RAN.append("setstate")


def run(what: str) -> None:
    RAN.append(what)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return run, ("reduce",)


class NestedExploit:
    """Its unpickling calls the result of a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return RAN.append, ("reduce",)


def test_objects_in_a_file_are_not_created(tmp_path: Path) -> None:
    content = {"state_dict": {"w": torch.ones(2)}, "callbacks": {Callback: Callback()}, "x": Path("y")}
    torch.save(content, tmp_path / "weights.ckpt")
    with Checkpoint(tmp_path / "weights.ckpt") as checkpoint:
        assert checkpoint.read("w").tolist() == [1, 1]
    assert RAN == []


@pytest.mark.parametrize("content", [b"hello\n", b"<!DOCTYPE html><html></html>", b"", b"PK\x03\x04", b"\x80\x02}q"])
def test_other_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.ckpt is not a file of tensors that torch.save wrote$"):
        Checkpoint(tmp_path / "weights.ckpt")


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Exploit()}, tmp_path / "weights.ckpt")
    with Checkpoint(tmp_path / "weights.ckpt") as checkpoint:
        assert checkpoint.read("w").tolist() == [1, 1]
    assert RAN == []
    torch.save({"w": torch.ones(2), "x": NestedExploit()}, tmp_path / "weights.ckpt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"x": Exploit()}, protocol=2))
    for name in ("weights.ckpt", "plain.pt"):
        with pytest.raises(ValueError, match="is not a file of tensors that torch.save wrote"):
            Checkpoint(tmp_path / name)
    assert RAN == []
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert RAN == ["reduce"]  # as it would have run
    RAN.clear()


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header cannot be 0 bytes long"),
        (b"\xff" * 20, "its header cannot be"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the file itself: run",
        ),
        (b"<!DOCTYPE html>\n", r"is not a safetensors file: it is a text that begins with '<!DOCTYPE html>\\n'"),
        ((100).to_bytes(8, "little") + b"{}", "its header cannot be 100 bytes long"),
        ((2).to_bytes(8, "little") + b"{]", "its header is no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "its header is no object"),
        (header({"a": ENTRY}, bytes(7)), "is cut off: 'a' ends at byte"),
        (header({"a": {**ENTRY, "shape": [3]}}, bytes(8)), r"'a' of shape \(3,\) and F32 has 8 bytes"),
        (header({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)), "has -8 bytes"),
        (header({"a": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(8)), "has 8 bytes"),
        (header({"a": {"dtype": "F32"}}, bytes(8)), "no dtype, shape and place of 'a'"),
        (header({"a": {**ENTRY, "dtype": "F4"}}, bytes(8)), "'a' is of the dtype F4, expected one of BOOL, "),
    ],
)
def test_a_damaged_file_is_refused_when_it_is_opened(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path / "weights.safetensors")


def test_a_file_that_is_cut_off_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(header({"a": ENTRY}, bytes(8)))
    with Checkpoint(path) as checkpoint:
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(OSError, match="ended within 'a'"):
            checkpoint.read("a")


def test_a_tensor_at_an_odd_place_is_viewed_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    text = json.dumps({"a": ENTRY}).encode()
    text += b" " * ((8 - len(text)) % 8 + 3)
    path.write_bytes(len(text).to_bytes(8, "little") + text + torch.tensor([1.0, 2.0]).numpy().tobytes())
    with Checkpoint(path) as checkpoint:
        assert checkpoint.view("a").tolist() == checkpoint.read("a").tolist() == [1, 2]


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.ones(1)], "text"])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no tensors"):
        Checkpoint(tmp_path / "weights.pt")


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        Checkpoint(tmp_path / "absent.safetensors")
    (tmp_path / "weights.txt").touch()
    with pytest.raises(ValueError, match=r"weights.txt must end in one of .safetensors, .sft, .ckpt"):
        Checkpoint(tmp_path / "weights.txt")


def test_sources_are_joined_below_prefixes() -> None:
    first, second = torch.arange(4.0), torch.arange(6.0).view(3, 2)
    joined = JoinedSource({"a/": StateDict({"w": first}), "b/": StateDict({"w": second, "v": first})})
    assert set(joined.infos) == {"a/w", "b/w", "b/v"}
    assert joined.infos["b/w"].shape == (3, 2)
    assert torch.equal(joined.read("b/w", rows=(1, 3)), second[1:])
    assert joined.view("a/w").data_ptr() == first.data_ptr()
    assert joined.read("a/w").data_ptr() != first.data_ptr()
    assert sorted(joined.infos, key=joined.place) == ["a/w", "b/w", "b/v"]


def test_a_state_dict_holds_tensors() -> None:
    with pytest.raises(TypeError, match="source must hold tensors, got int for 'step'"):
        StateDict({"step": 3})  # type: ignore[dict-item]
