"""Seeds, padding, files and texts of tensors. Images are in `test_utils_images.py`."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import refiners.fluxion
import refiners.fluxion.layers as fl
from refiners.fluxion.utils import (
    device_has_bfloat16,
    interpolate,
    load_from_safetensors,
    load_tensors,
    manual_seed,
    no_grad,
    norm,
    pad,
    save_to_safetensors,
    str_to_dtype,
    summarize_tensor,
)


def test_the_package_exports_five_of_them() -> None:
    for function in (norm, manual_seed, save_to_safetensors, load_from_safetensors, pad):
        assert getattr(refiners.fluxion, function.__name__) is function


def test_norm_is_the_root_of_the_sum_of_squares() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    assert norm(x).shape == ()
    assert norm(x).item() == 5.0


def test_a_seed_gives_the_same_numbers() -> None:
    manual_seed(7)
    x = torch.randn(3)
    manual_seed(7)
    assert torch.equal(torch.randn(3), x)
    manual_seed(8)
    assert not torch.equal(torch.randn(3), x)


def test_no_grad_holds_within_the_block_only() -> None:
    x = torch.ones(1, requires_grad=True)
    with no_grad():
        assert not (x + 1).requires_grad
    assert (x + 1).requires_grad


@pytest.mark.parametrize("decorator", [no_grad(), no_grad], ids=["called", "bare"])
def test_no_grad_is_a_decorator_with_and_without_parentheses(decorator: type[no_grad]) -> None:
    @decorator
    def double(x: Tensor) -> Tensor:
        return 2 * x

    x = torch.ones(1, requires_grad=True)
    assert not double(x).requires_grad
    assert (2 * x).requires_grad


def test_no_grad_can_be_compiled() -> None:
    def double(x: Tensor) -> Tensor:
        with no_grad():
            return 2 * x

    torch.compiler.reset()
    assert not torch.compile(double, fullgraph=True, backend="eager")(torch.ones(1, requires_grad=True)).requires_grad


def test_pad_is_torchs() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(pad(x, [1, 2]), F.pad(x, (1, 2)))
    assert torch.equal(pad(x, iter((1, 0, 0, 2)), value=-1.0), F.pad(x, (1, 0, 0, 2), value=-1.0))
    assert torch.equal(pad(x, (1, 1, 2, 0), mode="reflect"), F.pad(x, (1, 1, 2, 0), mode="reflect"))


def test_interpolate_is_torchs() -> None:
    x = torch.randn(1, 2, 6, 4)
    assert torch.equal(interpolate(x, Size([3, 8])), F.interpolate(x, size=(3, 8)))
    expected = F.interpolate(x, size=(3, 2), mode="bicubic", antialias=True)
    assert torch.equal(interpolate(x, Size([3, 2]), "bicubic", True), expected)


def test_load_tensors_reads_what_torch_saved(tmp_path: Path) -> None:
    tensors = {"easy-as.weight": torch.tensor([1.0, 2.0, 3.0])}
    torch.save(tensors, tmp_path / "tensors.pt")
    for path in (tmp_path / "tensors.pt", str(tmp_path / "tensors.pt")):
        loaded = load_tensors(path)
        assert list(loaded) == ["easy-as.weight"]
        assert torch.equal(loaded["easy-as.weight"], tensors["easy-as.weight"])
    assert load_tensors(tmp_path / "tensors.pt", device="meta")["easy-as.weight"].is_meta


@pytest.mark.parametrize("content", [torch.ones(1), [torch.ones(1)], {"a": 1}, {1: torch.ones(1)}], ids=str)
def test_load_tensors_refuses_what_is_no_dictionary_of_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "content.pt")
    with pytest.raises(AssertionError, match="expected a dictionary of tensors"):
        load_tensors(tmp_path / "content.pt")


def test_a_chain_can_be_saved_and_is_refused_by_load_tensors(tmp_path: Path) -> None:
    torch.save(fl.Chain(fl.Linear(1, 1)), tmp_path / "chain.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_tensors(tmp_path / "chain.pt")


def test_safetensors_go_to_a_file_and_back(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(2, 3), "b": torch.arange(4, dtype=torch.int16)}
    path = tmp_path / "tensors.safetensors"
    save_to_safetensors(path, tensors, metadata={"author": "someone"})
    for name in (path, str(path)):
        loaded = load_from_safetensors(name)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert b'"author":"someone"' in path.read_bytes()
    assert load_from_safetensors(path, device=torch.device("cpu"))["b"].dtype == torch.int16


@pytest.mark.cuda
def test_safetensors_are_loaded_on_the_device_that_is_asked_for(tmp_path: Path) -> None:
    save_to_safetensors(tmp_path / "tensors.safetensors", {"a": torch.ones(2)})
    for device in ("cuda", torch.device("cuda", 0)):
        assert load_from_safetensors(tmp_path / "tensors.safetensors", device=device)["a"].is_cuda


def test_tensors_that_share_memory_are_refused(tmp_path: Path) -> None:
    x = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_to_safetensors(tmp_path / "tensors.safetensors", {"a": x, "b": x})


SUMMARIES = [
    (
        torch.zeros(1, 3, dtype=torch.int32),
        "Tensor(shape=(1, 3), dtype=int32, device=cpu, min=0.00, max=0.00, mean=0.00, norm=0.00, std=0.00, grad=False)",
    ),
    (
        torch.tensor([True, False]),
        "Tensor(shape=(2,), dtype=bool, device=cpu, min=0.00, max=1.00, mean=0.50, norm=1.00, std=0.71, grad=False)",
    ),
    (
        torch.tensor([1.0, -3.0]).requires_grad_(),
        "Tensor(shape=(2,), dtype=float32, device=cpu, min=-3.00, max=1.00, mean=-1.00, norm=3.16, std=2.83,"
        " grad=True)",
    ),
    (
        torch.tensor([2.0**60, 1.0], dtype=torch.float64),
        "Tensor(shape=(2,), dtype=float64, device=cpu, min=1.00, max=1152921504606846976.00,"
        " mean=576460752303423488.00, norm=1152921504606846976.00, std=815238614083298944.00, grad=False)",
    ),
    (
        torch.tensor([1.5], dtype=torch.bfloat16),
        "Tensor(shape=(1,), dtype=bfloat16, device=cpu, min=1.50, max=1.50, mean=1.50, norm=1.50, grad=False)",
    ),
    (
        torch.tensor([3.0 + 9j, -4.0], dtype=torch.complex64),
        "Tensor(shape=(2,), dtype=complex64, device=cpu, mean=-0.50, norm=5.00, std=4.95, grad=False)",
    ),
    (torch.empty(0, 2, dtype=torch.float16), "Tensor(shape=(0, 2), dtype=float16, device=cpu)"),
    (torch.ones(2, device="meta"), "Tensor(shape=(2,), dtype=float32, device=meta, grad=False)"),
    (
        torch.tensor(2.0),
        "Tensor(shape=(), dtype=float32, device=cpu, min=2.00, max=2.00, mean=2.00, norm=2.00, grad=False)",
    ),
]


@pytest.mark.parametrize(
    ("tensor", "summary"), SUMMARIES, ids=[str(tensor.dtype) + str(i) for i, (tensor, _) in enumerate(SUMMARIES)]
)
def test_a_tensor_is_summarized(tensor: Tensor, summary: str) -> None:
    assert summarize_tensor(tensor) == summary


def test_no_tensor_is_too_strange_to_be_summarized() -> None:
    with FakeTensorMode():
        fake = torch.ones(2, 3)
    strange = [
        fake,
        torch.ones(2, 3).to_sparse(),
        torch.full((2,), float("nan")),
        torch.ones(2, dtype=torch.uint16),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2, 2).expand(3, 2, 2),
    ]
    for tensor in strange:
        text = summarize_tensor(tensor)
        assert text.startswith(f"Tensor(shape={tuple(tensor.shape)}, dtype=")
        assert text.endswith("grad=False)")


def test_a_summary_does_not_change_the_tensor() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    summarize_tensor(x)
    assert x.grad_fn is None
    assert x.requires_grad


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("float32", "float"), torch.float32),
        (("float64", "double"), torch.float64),
        (("complex64", "cfloat"), torch.complex64),
        (("complex128", "cdouble"), torch.complex128),
        (("float16", "half"), torch.float16),
        (("bfloat16",), torch.bfloat16),
        (("uint8",), torch.uint8),
        (("int8",), torch.int8),
        (("int16", "short"), torch.int16),
        (("int32", "int"), torch.int32),
        (("int64", "long"), torch.int64),
        (("bool",), torch.bool),
    ],
    ids=str,
)
def test_dtypes_have_names_in_any_case(names: tuple[str, ...], dtype: torch.dtype) -> None:
    for name in names:
        assert str_to_dtype(name) == str_to_dtype(name.upper()) == dtype


@pytest.mark.parametrize("name", ["torch.float32", "", "float31"])
def test_an_unknown_name_of_a_dtype_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown dtype: {name}"):
        str_to_dtype(name)


@pytest.mark.parametrize(
    ("device", "cuda", "capability", "expected"),
    [
        ("cpu", "12.4", (9, 0), False),
        ("cuda", None, (9, 0), False),
        ("cuda", "10.2", (8, 0), False),
        ("cuda", "11.8", (7, 5), False),
        ("cuda", "11.8", (8, 0), True),
        ("cuda", "13.0", RuntimeError("no driver"), False),
    ],
)
def test_bfloat16_needs_a_gpu_of_capability_8(
    device: str,
    cuda: str | None,
    capability: tuple[int, int] | Exception,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get_device_capability(_: torch.device) -> tuple[int, int]:
        if isinstance(capability, Exception):
            raise capability
        return capability

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", get_device_capability)
    assert device_has_bfloat16(torch.device(device)) is expected


def test_bfloat16_can_be_asked_for_on_this_machine() -> None:
    assert device_has_bfloat16(torch.device("cpu")) is False
    expected = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    assert device_has_bfloat16(torch.device("cuda")) is expected
