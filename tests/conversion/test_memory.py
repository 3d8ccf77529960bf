"""Memory for tensors that are read: each has its own storage, and gives it back."""

from __future__ import annotations

import copy
import gc
import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Size, Tensor, nn

from refiners.conversion.memory import Memory

MIB = 1 << 20
SHAPES = [(), (1,), (3,), (2, 3), (16, 1280), (7, 5, 3, 3), (1000, 1000), (3 * MIB,), (0,), (2, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_tensors_are_those_of_torch_without_values(dtype: torch.dtype) -> None:
    memory = Memory()
    for shape in SHAPES:
        tensor, view = memory.take(Size(shape), dtype)
        assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
        assert tensor.is_contiguous() and not tensor.requires_grad and not view.readonly
        assert tensor.untyped_storage().nbytes() == len(view) == tensor.numel() * dtype.itemsize
        assert tensor.data_ptr() % 64 == 0


def test_the_view_is_the_memory_of_the_tensor() -> None:
    memory = Memory()
    for shape in SHAPES:
        tensor, view = memory.take(Size(shape), torch.float32)
        wanted = torch.randn(shape)
        view[:] = wanted.numpy().tobytes()
        assert torch.equal(tensor, wanted)


def test_tensors_share_no_bytes_and_count_their_own_changes() -> None:
    memory = Memory()
    tensors = [memory.take(Size((100 + i,)), torch.float32)[0] for i in range(5_000)]  # more than a mapping holds
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
    assert all(place + size <= following for (place, size), (following, _) in pairwise(places))
    assert all(place % 64 == 0 for place, _ in places)
    tensors[0].fill_(1)
    assert tensors[0]._version == 1 and tensors[1]._version == 0


def test_a_tensor_can_do_what_others_can() -> None:
    for shape in ((4, 4), (1024, 1024)):
        tensor, view = Memory().take(Size(shape), torch.float32)
        view[:] = bytes(len(view))
        parameter = nn.Parameter(tensor)
        parameter.sum().backward()
        assert torch.equal(copy.deepcopy(parameter), parameter)
        file = io.BytesIO()
        torch.save(tensor, file)
        assert file.tell() < tensor.nbytes + 4096
        file.seek(0)
        assert torch.equal(torch.load(file), tensor)
        assert torch.equal(tensor.share_memory_(), torch.zeros(shape))


def test_tensors_outlive_the_others() -> None:
    memory = Memory()
    kept, view = memory.take(Size((16,)), torch.uint8)
    view[:] = bytes(range(16))
    del view
    for _ in range(100):
        memory.take(Size((MIB,)), torch.uint8)[0].fill_(255)
    del memory
    gc.collect()
    assert kept.tolist() == list(range(16))


def _mapped() -> int:
    """Count the bytes of mappings of this process that are of no file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    sizes = [line.split()[0].split("-") for line in lines if len(line.split()) == 5]
    return sum(int(end, 16) - int(begin, 16) for begin, end in sizes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of mappings")
def test_memory_goes_back_to_the_system_with_the_last_tensor() -> None:
    before = _mapped()
    memory = Memory()
    tensors: list[Tensor] = [memory.take(Size((40 * MIB,)), torch.uint8)[0] for _ in range(10)]
    tensors += [memory.take(Size((MIB,)), torch.uint8)[0] for _ in range(100)]
    assert _mapped() - before > 490 * MIB
    del tensors, memory
    gc.collect()
    assert _mapped() - before < 60 * MIB
