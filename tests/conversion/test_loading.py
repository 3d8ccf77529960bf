"""Weights of any format go into our models one tensor at a time, or not at all."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Size, Tensor, nn

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.loading import load_into, read_weights

Make = Callable[..., nn.Module]


@pytest.fixture
def state(tiny: Any) -> dict[str, Tensor]:
    """A small text encoder of transformers."""
    return tiny.text_1.state_dict()


@pytest.fixture
def shapes(state: dict[str, Tensor]) -> dict[str, Size]:
    """The keys and shapes of the same text encoder of ours."""
    return {key: tensor.shape for key, tensor in read_weights(state).items()}


def save(path: Path, state: dict[str, Tensor]) -> Path:
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def holds(module: nn.Module, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> bool:
    expected = read_weights(state, dtype=dtype)
    found = module.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_module_on_meta_is_filled_from_a_file(
    suffix: str, tmp_path: Path, state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make
) -> None:
    path = save(tmp_path / f"model{suffix}", state)
    module = make_module(shapes, dtype=torch.float16)
    assert load_into(module, path) is module
    assert holds(module, state, torch.float16)  # as it was declared
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    assert all(isinstance(each, nn.Parameter) and each.requires_grad for each in module.parameters())
    path.unlink()
    assert holds(module, state, torch.float16)


def test_the_dtype_and_device_can_be_chosen(
    tmp_path: Path, state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make, device: torch.device
) -> None:
    path = save(tmp_path / "model.safetensors", state)
    module = load_into(make_module(shapes), path, device=device, dtype=torch.bfloat16)
    assert {(each.dtype, each.device.type) for each in module.parameters()} == {(torch.bfloat16, device.type)}
    assert holds(module.cpu(), state, torch.bfloat16)


@pytest.mark.parametrize("source", ["path", "text", "folder", "checkpoint", "state dict"])
def test_any_source_will_do(
    source: str, tmp_path: Path, state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make
) -> None:
    path = save(tmp_path / "model.safetensors", state)
    sources: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "folder": tmp_path,
        "checkpoint": Checkpoint(path),
        "state dict": state,
    }
    assert holds(load_into(make_module(shapes), sources[source]), state)
    module = make_module(shapes, device="cpu")
    assert holds(load_into(module, sources[source]), state)
    sources["checkpoint"].close()


def test_a_state_dict_does_not_share_its_memory(
    state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make
) -> None:
    module = load_into(make_module(shapes), state)
    memory = {tensor.data_ptr() for tensor in state.values()}
    assert not any(parameter.data_ptr() in memory for parameter in module.parameters())


def test_parameters_that_exist_remain_the_same_objects(
    tmp_path: Path, state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make
) -> None:
    module = make_module(shapes, device="cpu", dtype=torch.float16)
    before = dict(module.named_parameters())
    pointers = {key: parameter.data_ptr() for key, parameter in before.items()}
    load_into(module, save(tmp_path / "model.safetensors", state))
    assert holds(module, state, torch.float16)
    for key, parameter in module.named_parameters():
        assert parameter is before[key] and parameter.data_ptr() == pointers[key]


@pytest.mark.parametrize(("argument", "value"), [("device", "meta"), ("dtype", torch.float16)])
def test_device_and_dtype_are_for_what_is_created(
    argument: str, value: Any, state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make
) -> None:
    module = make_module(shapes, device="cpu")
    with pytest.raises(ValueError, match=f"{argument} is for parameters on the meta device, but Sum.TokenEncoder"):
        load_into(module, state, **{argument: value})
    assert load_into(module, state, device="cpu", dtype=torch.float32) is module


def damage(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    damaged = dict(state)
    key = "encoder.layers.1.mlp.fc1.weight"
    if what == "missing":
        del damaged[key]
    elif what == "left over":
        damaged["encoder.layers.1.mlp.fc3.weight"] = torch.ones(1)
    elif what == "deeper":
        damaged |= {k.replace("layers.2", "layers.3"): v.clone() for k, v in state.items() if "layers.2" in k}
    elif what == "dtype":
        damaged[key] = damaged[key].to(torch.int8)
    else:
        damaged[key] = damaged[key][:-1]
    return damaged


NEAREST = "the nearest is transformers, in which there are"
TRIED = (
    "(tried: refiners, transformers, ldm (prefix cond_stage_model.transformer.), "
    "ldm (prefix conditioner.embedders.0.transformer.), open_clip, ldm (prefix cond_stage_model.model.), "
    "ldm (prefix conditioner.embedders.1.model.), ldm (prefix conditioner.embedders.0.model.))"
)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("missing", ["1 missing:", "    encoder.layers.1.mlp.fc1.weight"]),
        ("left over", ["1 left over:", "    encoder.layers.1.mlp.fc3.weight"]),
        (
            "deeper",
            [
                "16 left over:",
                *(f"    encoder.layers.3.{n}.{k}" for n in ("layer_norm1", "layer_norm2") for k in ("bias", "weight")),
                *(f"    encoder.layers.3.mlp.{n}.{k}" for n in ("fc1", "fc2") for k in ("bias", "weight")),
                *(f"    encoder.layers.3.self_attn.k_proj.{k}" for k in ("bias", "weight")),
                "    ... and 6 more",
            ],
        ),
        (
            "shape",
            [
                "1 of another shape or dtype:",
                "    encoder.layers.1.mlp.fc1.weight: expected (64, 32), got (63, 32)",
            ],
        ),
        (
            "dtype",
            [
                "1 of another shape or dtype:",
                "    encoder.layers.1.mlp.fc1.weight: expected floating point, got torch.int8",
            ],
        ),
    ],
)
def test_a_damaged_file_is_refused_and_the_module_left_as_it_was(
    what: str,
    lines: list[str],
    device: str,
    tmp_path: Path,
    state: dict[str, Tensor],
    shapes: dict[str, Size],
    make_module: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path / "model.safetensors", damage(state, what))
    module = make_module(shapes, device=device)
    before = dict(module.named_parameters())
    monkeypatch.setattr(Checkpoint, "read", lambda *args, **kwargs: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match="cannot load") as caught:
        load_into(module, path)
    text = f"cannot load {path} into Module: this is no clip_text of the structure of the module in any known format"
    assert str(caught.value).splitlines() == [f"{text} {TRIED}; {NEAREST}", *lines]
    for key, parameter in module.named_parameters():
        assert parameter is before[key]
        assert parameter.is_meta or not parameter.any()


def test_an_error_while_reading_leaves_the_module_as_it_was(
    tmp_path: Path,
    state: dict[str, Tensor],
    shapes: dict[str, Size],
    make_module: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path / "model.safetensors", state)
    module = make_module(shapes)
    read, count = Checkpoint.read, 0

    def fail_later(self: Checkpoint, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError("the disk is gone")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "read", fail_later)
    with pytest.raises(OSError, match="the disk is gone"):
        load_into(module, path)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_file_of_another_model_says_which_names_were_expected(
    tiny: Any, shapes: dict[str, Size], make_module: Make
) -> None:
    with pytest.raises(ValueError, match=r"cannot load the state dict into Module.*not one tensor has a name"):
        load_into(make_module(shapes), tiny.vae.state_dict())


def test_a_module_with_adapters_is_refused(
    state: dict[str, Tensor], shapes: dict[str, Size], make_module: Make
) -> None:
    module = make_module({**shapes, "TransformerLayer_1.LoraAdapter.Linear.weight": Size([1])})
    with pytest.raises(ValueError, match=r"keys of its own \(are adapters in place\?.*\n1 unknown:\n    Transformer"):
        load_into(module, state)
    with pytest.raises(ValueError, match="these are not the keys of a model whose weights can be read"):
        load_into(nn.Linear(2, 2), state)
    with pytest.raises(ValueError, match="module has not the keys of a autoencoder"):
        load_into(make_module(shapes), state, component="autoencoder")


def test_tensors_are_read_in_the_order_of_the_file(
    tmp_path: Path,
    state: dict[str, Tensor],
    shapes: dict[str, Size],
    make_module: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path / "model.safetensors", state)
    read, places = Checkpoint.read, []

    def note(self: Checkpoint, key: str, *args: Any, **kwargs: Any) -> Tensor:
        places.append(self.place(key))
        return read(self, key, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "read", note)
    load_into(make_module(shapes), path)
    assert len(places) == len(state)
    assert places == sorted(places)


MEASURE = """
import resource, sys, torch
from pathlib import Path
from torch import nn
from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.detection import find_component
from refiners.conversion.loading import load_into

path, dtype, device = Path(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
with Checkpoint(path) as checkpoint:
    shapes = find_component(checkpoint).shapes
root = nn.Module()
for key, shape in shapes.items():
    *parts, name = key.split(".")
    module = root
    for part in parts:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype).fill_(1)))
torch.zeros(1 << 20).to(torch.float16)  # whatever the first use allocates

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = resident("VmRSS")
load_into(root, path)
model = sum(p.numel() * p.itemsize for p in root.parameters())
largest = max(p.numel() * p.itemsize for p in root.parameters())
print(resident("VmHWM") - before, model, largest)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_memory_is_the_model_and_one_tensor(tmp_path: Path, dtype: str, tiny: Any) -> None:
    model = tiny.text(dim=512, layers=24, projection=False)
    path = save(tmp_path / "model.safetensors", model.state_dict())
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    run = subprocess.run([sys.executable, script, path, dtype, "meta"], capture_output=True, text=True, check=True)
    peak, size, largest = map(int, run.stdout.split())
    assert size > 100e6 * getattr(torch, dtype).itemsize / 4
    assert peak <= size + largest + (8 << 20)
    assert peak > 0.8 * size  # it was measured
