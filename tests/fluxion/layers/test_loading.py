"""Loading a file of weights into a module: what the errors list, and what is created from nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.utils import save_to_safetensors

Saved = Callable[[dict[str, Tensor]], Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Save tensors to a file and return its path."""

    def save(tensors: dict[str, Tensor]) -> Path:
        save_to_safetensors(tmp_path / "weights.safetensors", tensors)
        return tmp_path / "weights.safetensors"

    return save


def chain_of(count: int, device: str | None = None) -> fl.Chain:
    return fl.Chain(fl.Linear(2, 3, bias=False, device=device) for _ in range(count))


def error_of(module: fl.Module, path: Path, strict: bool = True) -> list[str]:
    """Return the lines of the error of loading; fail if anything was loaded all the same."""
    before = {name: (tensor, tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    with pytest.raises(RuntimeError) as info:
        module.load_from_safetensors(path, strict=strict)
    for name, tensor in module.state_dict(keep_vars=True).items():
        kept, values = before[name]
        assert tensor is kept and (tensor.is_meta or torch.equal(tensor, values)), name
    return str(info.value).splitlines()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_failed_load_lists_what_is_missing_unexpected_and_misshaped(device: str, saved: Saved) -> None:
    good, short = torch.ones(3, 2), torch.ones(3, 1)
    path = saved({"Linear_1.weight": good, "Linear_3.weight": short, "other": torch.ones(1)})
    assert error_of(chain_of(3, device), path) == [
        f"Error(s) in loading state_dict for Chain from {path}:",
        "1 missing:",
        "    Linear_2.weight",
        "1 unexpected:",
        "    other",
        "1 of another shape:",
        "    Linear_3.weight: expected (3, 2), got (3, 1)",
    ]


def test_only_shapes_matter_to_a_load_that_is_not_strict(saved: Saved) -> None:
    path = saved({"Linear_1.weight": torch.ones(3, 2), "Linear_3.weight": torch.ones(4), "other": torch.ones(1)})
    assert error_of(chain_of(3), path, strict=False)[1:] == [
        "1 of another shape:",
        "    Linear_3.weight: expected (3, 2), got (4,)",
    ]


@pytest.mark.parametrize("count,rest", [(10, []), (11, ["    ... and 1 more"]), (25, ["    ... and 15 more"])])
def test_each_list_ends_after_ten_names_with_the_count_of_the_rest(count: int, rest: list[str], saved: Saved) -> None:
    names = [f"Linear_{number}.weight" for number in range(1, 2 * count + 1)]
    extra = [f"other_{number:02}" for number in range(count)]
    lines = error_of(chain_of(2 * count), saved({name: torch.ones(1) for name in [*names[count:], *extra]}))
    shapes = [f"{name}: expected (3, 2), got (1,)" for name in names[count:]]
    for title, listed in (("missing", names[:count]), ("unexpected", extra), ("of another shape", shapes)):
        start = lines.index(f"{count} {title}:") + 1
        end = start + 10 + len(rest)
        assert lines[start:end] == [*(f"    {name}" for name in listed[:10]), *rest]
        assert end == len(lines) or lines[end].endswith(":")


def test_loading_into_a_meta_model_creates_its_parameters_without_a_random_number(saved: Saved) -> None:
    weights = {f"Linear_{number}.weight": torch.randn(3, 2) for number in (1, 2)}
    path = saved(weights)
    before = torch.get_rng_state()
    model = chain_of(2, "meta").load_from_safetensors(path)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad, name
        assert parameter.device.type == "cpu" and torch.equal(parameter, weights[name])


def test_each_parameter_of_a_meta_model_is_copied_from_the_file_once(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Tensor] = []
    to = Tensor.to

    def recording(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        copies.append(to(self, *args, **kwargs))  # pyright: ignore[reportArgumentType, reportCallIssue]
        return copies[-1]

    path = saved({"Linear_1.weight": torch.randn(3, 2), "Linear_2.weight": torch.randn(3, 2)})
    model = chain_of(2, "meta")
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", recording)
        model.load_from_safetensors(path)
    assert {p.data_ptr() for p in model.parameters()} == {copy.data_ptr() for copy in copies} and len(copies) == 2


def test_a_created_parameter_has_the_declared_dtype_and_is_not_a_view_of_the_file(saved: Saved) -> None:
    values = torch.randn(3, 2)
    path = saved({"weight": values})
    model = fl.Linear(2, 3, bias=False, device="meta", dtype=torch.float16).load_from_safetensors(path)
    assert model.weight.dtype == torch.float16 and torch.equal(model.weight, values.half())
    plain = fl.Linear(2, 3, bias=False, device="meta").load_from_safetensors(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))  # the same pages, now zeros
    assert torch.equal(plain.weight, values)
