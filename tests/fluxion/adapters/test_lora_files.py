"""Updates of any chain in a file, by the paths of their layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter, Conv2dLora, LinearLora, Lora, LoraAdapter
from refiners.fluxion.adapters.lora import ChannelFactors, WeightUpdate
from refiners.fluxion.adapters.lora.files import load_loras, save_loras
from refiners.fluxion.adapters.lora.training import TrainableLoras, add_trainable_loras


def make_model() -> fl.Chain:
    return fl.Chain(
        fl.Conv2d(3, 8, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 1), padding_mode="circular"),
        fl.Sum(fl.Chain(fl.Linear(4, 4), fl.ReLU()), fl.Linear(4, 4, bias=False)),
        fl.Flatten(start_dim=2),
        fl.LayerNorm(24),
        fl.Linear(24, 5),
    )


def train(model: fl.Chain, **options: Any) -> TrainableLoras:
    """Attach updates with weights as after some training."""
    loras = add_trainable_loras("style", model, rank=2, **options)
    with torch.no_grad():
        for parameter in loras.parameters():
            parameter.add_(torch.randn(parameter.shape) / 5)
    return loras


@pytest.fixture
def model() -> fl.Chain:
    return make_model()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 12, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "style.safetensors"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 1.0},
        {"alpha": 1.0, "rank_stabilized": True, "rank_pattern": {"Sum.Linear": 3}, "alpha_pattern": {"Linear": 0.5}},
        {"initialisation": "pissa", "alpha": 1.0},
    ],
    ids=str,
)
def test_another_chain_computes_the_same(model: fl.Chain, x: Tensor, path: Path, options: dict[str, Any]) -> None:
    loras, other = train(model, **options), make_model()
    expected, base = model(x), loras.eject() or model(x)
    loras.inject()
    save_loras(model, "style", path)
    loras.eject()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), base)
    loaded = load_loras(other, "style", path)
    assert list(loaded) == list(loras.loras)
    torch.testing.assert_close(other(x), expected)
    assert not torch.allclose(expected, base)
    assert {type(lora) for lora in loaded.values()} == {LinearLora, Conv2dLora}


def test_scales_are_the_users(model: fl.Chain, x: Tensor, path: Path) -> None:
    loras = train(model, alpha=1.0)
    for adapter in loras.adapters:
        adapter.scale = {"style": 0.5}
    save_loras(model, "style", path)
    expected = model(x)
    loras.eject()
    load_loras(model, "half", path, scale=0.5)
    torch.testing.assert_close(model(x), expected)
    per_sample = torch.tensor([0.5, 0.0])
    load_loras(model, "again", path, scale=per_sample)
    assert all(adapter.scales == {"half": 0.5, "again": per_sample} for adapter in model.layers(LoraAdapter))


def test_the_keys_and_texts_of_a_file(model: fl.Chain, path: Path) -> None:
    train(model, alpha=3.0, paths="Sum.Linear")
    save_loras(model, "style", path, metadata={"author": "me"})
    tensors = load_file(path)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "Sum.Linear.lora_down.weight": (2, 4),
        "Sum.Linear.lora_up.weight": (4, 2),
        "Sum.Linear.alpha": (),
    }
    assert tensors["Sum.Linear.alpha"] == 3.0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "me"}


def test_updates_of_several_names_have_files_of_their_own(model: fl.Chain, x: Tensor, path: Path) -> None:
    style = train(model)
    expected = model(x)
    LoraAdapter(model.Sum[1].target, LinearLora("other", 4, 4)).inject(model)  # nested
    save_loras(model, "style", path)
    assert not any("other" in key for key in load_file(path)) and len(load_file(path)) == 3 * len(style.loras)
    style.eject()
    load_loras(model, "style", path)
    torch.testing.assert_close(model(x), expected)


def test_weights_come_in_the_dtype_of_their_layers(model: fl.Chain, path: Path) -> None:
    loras = train(model, alpha=3.0)
    save_loras(model, "style", path)
    loras.eject()
    loaded = load_loras(model.to(torch.bfloat16), "style", path)
    for key, lora in loras.loras.items():
        assert torch.equal(loaded[key].up.weight, (1.5 * lora.up.weight).to(torch.bfloat16))
        assert torch.equal(loaded[key].down.weight, lora.down.weight.to(torch.bfloat16))


def test_a_file_is_not_held_open_by_what_was_loaded(model: fl.Chain, x: Tensor, path: Path) -> None:
    loras = train(model)
    save_loras(model, "style", path)
    loras.eject()
    load_loras(model, "style", path)
    expected = model(x)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(model(x), expected)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["Sum.Linear_7.alpha"] = tensors.pop("Linear.alpha")
    tensors["Sum.Linear_7.lora_up.weight"] = tensors.pop("Linear.lora_up.weight")
    tensors["Sum.Linear_7.lora_down.weight"] = tensors.pop("Linear.lora_down.weight")


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "another ending": (lambda t: t.update({"Linear.bias": torch.zeros(5)}), "Linear.bias is none of <path>.lora_down"),
    "no such layer": (rename, "Sum.Linear_7: the chain has no such layer"),
    "no matrix": (lambda t: t.pop("Linear.lora_up.weight"), "Linear: the matrix 'up' is missing"),
    "only alpha": (lambda t: t.update({"LayerNorm.alpha": torch.ones(())}), "LayerNorm: the matrix 'down' is missing"),
    "ranks": (
        lambda t: t.update({"Linear.lora_up.weight": torch.zeros(5, 3)}),
        r"Linear: down (2, 24) and up (5, 3) do not fit the layer's weight, which is (5, 24)",
    ),
    "no dimensions": (
        lambda t: t.update({"Linear.lora_down.weight": torch.zeros(())}),
        "Linear: down () and up (5, 2)",
    ),
    "no rank": (
        lambda t: t.update({"Linear.lora_down.weight": torch.zeros(0, 24), "Linear.lora_up.weight": torch.zeros(5, 0)}),
        "Linear: down (0, 24) and up (5, 0) do not fit",
    ),
    "a norm": (
        lambda t: t.update({f"LayerNorm.lora_{each}.weight": torch.ones(1, 1) for each in ("up", "down")}),
        "LayerNorm: the layer can have no low-rank update: LayerNorm",
    ),
    "two alphas": (
        lambda t: t.update({"Linear.alpha": torch.ones(2)}),
        "Linear: alpha must be one number, got shape (2,)",
    ),
    "a wild alpha": (
        lambda t: t.update({"Linear.alpha": torch.tensor(float("nan"))}),
        "Linear: alpha must be finite, got nan",
    ),
    "whole numbers": (
        lambda t: t.update({"Linear.lora_up.weight": torch.zeros(5, 2, dtype=torch.int32)}),
        "Linear: numbers must be of floating point, got I32",
    ),
    "wild numbers": (
        lambda t: t.update({"Linear.lora_up.weight": torch.full((5, 2), float("inf"))}),
        "Linear: up holds numbers that are not finite in torch.float32",
    ),
    "nothing": (lambda t: t.clear(), "there are no updates in it"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_changes_nothing(
    model: fl.Chain, x: Tensor, path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    loras = train(model)
    save_loras(model, "style", path)
    loras.eject()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    before, expected = {key: id(module) for key, module in model.named_modules()}, model(x)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_loras(model, "style", path)
    assert str(caught.value).startswith(f"{path}: ")
    assert before == {key: id(module) for key, module in model.named_modules()}
    assert torch.equal(model(x), expected)


def test_a_name_that_is_taken(model: fl.Chain, path: Path) -> None:
    loras = train(model)
    save_loras(model, "style", path)
    with pytest.raises(ValueError, match="Linear: the layer has an update of the name 'style'"):
        load_loras(model, "style", path)
    assert [len(list(adapter.lora_layers)) for adapter in loras.adapters] == [1] * 4


class Without(fl.Chain, Adapter[fl.Linear]):
    """A layer in the place of another, which is not used meanwhile."""

    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Linear(target.in_features, target.out_features))


@pytest.mark.parametrize(
    ("name", "scale", "error", "message"),
    [
        ("", 1.0, TypeError, "name must be a text that is not empty, got ''"),
        (None, 1.0, TypeError, "name must be a text that is not empty, got None"),
        ("style", None, TypeError, "the scale of 'style' must be a number or a tensor, got NoneType"),
        ("style", "1", TypeError, "the scale of 'style' must be a number or a tensor, got str"),
        ("style", float("nan"), ValueError, "the scale of 'style' must be finite, got nan"),
        ("style", torch.tensor([1.0, float("inf")]), ValueError, "the scale of 'style' must be finite, got tensor"),
    ],
    ids=["empty", "no name", "no scale", "text", "not finite", "tensor"],
)
def test_a_wrong_name_or_scale_is_refused_before_the_file_is_read(
    model: fl.Chain, name: Any, scale: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_loras(model, name, "there is no such file.safetensors", scale=scale)


def test_a_layer_that_an_adapter_does_without(model: fl.Chain, path: Path) -> None:
    loras = train(model)
    save_loras(model, "style", path)
    loras.eject()
    layer: Any = model.Linear
    Without(layer).inject(model)
    with pytest.raises(ValueError, match="1 problem, nothing was attached:\n  Linear: the chain has no such layer"):
        load_loras(model, "style", path)


def test_no_file_and_no_tensors(model: fl.Chain, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_loras(model, "style", path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is no file of safetensors"):
        load_loras(model, "style", path)


def test_what_cannot_be_saved(model: fl.Chain, path: Path) -> None:
    with pytest.raises(ValueError, match="no updates of the name 'style' are attached to Chain"):
        save_loras(model, "style", path)
    layer: Any = model.Linear
    update: Any = WeightUpdate("style", layer, ChannelFactors(layer, torch.ones(5)))
    adapter = LoraAdapter(layer, update).inject(model)
    with pytest.raises(ValueError, match="Linear: the update .* is no pair of matrices"):
        save_loras(model, "style", path)
    adapter.eject()
    first: Any = model.Conv2d
    sizes: Any = {"kernel_size": (1, (3, 5)), "padding": (0, (1, 2))}
    lora: Lora[Any] = Conv2dLora("style", 3, 8, rank=2, **sizes)
    LoraAdapter(first, lora).inject(model)
    with pytest.raises(ValueError, match="Conv2d: the update .* is no pair of matrices, the second of 1×1"):
        save_loras(model, "style", path)
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got '.*style.pt'"):
        save_loras(model, "style", path.with_suffix(".pt"))
    assert not path.exists()
