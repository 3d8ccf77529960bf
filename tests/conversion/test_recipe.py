"""Recipes translate names and shapes; conversions download, translate, cast, save and check."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refiners.conversion.utils import Conversion, Hub, WeightRecipe
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors

RECIPE = WeightRecipe(
    key_map={"a": "A.Linear", "b.c": "B", "token": "T.Parameter.weight"},
    key_prefix="model.",
    key_aliases={"old": "a"},
    tensor_reshapes={"T.Parameter.weight": (1, 3)},
)


def test_names_are_mapped_and_unknown_ones_dropped() -> None:
    names = [
        "model.a.weight",
        "model.a.bias",
        "model.b.c.weight",
        "b.c.bias",
        "model.token",
        "a.running_mean",
        "x.weight",
    ]
    mapped = RECIPE.name_map_keys({name: name for name in names})
    assert mapped == {
        "A.Linear.weight": "model.a.weight",
        "A.Linear.bias": "model.a.bias",
        "B.weight": "model.b.c.weight",
        "B.bias": "b.c.bias",
        "T.Parameter.weight": "model.token",
    }


def test_aliases_are_other_spellings_of_the_same_name() -> None:
    assert RECIPE.name_map_keys({"model.old.weight": 1}) == {"A.Linear.weight": 1}
    with pytest.raises(ValueError, match=r"two entries for 'A.Linear.weight', the second is 'model.a.weight'"):
        RECIPE.name_map_keys({"model.old.weight": 1, "model.a.weight": 2})


def test_only_the_start_of_a_name_is_a_prefix() -> None:
    assert RECIPE.name_map_keys({"b.model.c.weight": 1}) == {}


def test_nested_dictionaries_are_flattened() -> None:
    nested = {"a": {"b": {"c": 1}, "d": 2}, "e": 3, "f": {}}
    assert WeightRecipe.flatten_state_dict(nested) == {"a.b.c": 1, "a.d": 2, "e": 3}
    assert WeightRecipe.flatten_state_dict(nested, sep="/") == {"a/b/c": 1, "a/d": 2, "e": 3}
    assert WeightRecipe.flatten_state_dict({"a": OrderedDict(b=1)}) == {"a.b": 1}
    with pytest.raises(ValueError, match="two entries of the key 'a.b'"):
        WeightRecipe.flatten_state_dict({"a.b": 1, "a": {"b": 2}})


def test_tensors_are_reshaped_by_our_name() -> None:
    translated = RECIPE.translate_keys({"model": {"token": torch.arange(3.0), "a": {"weight": torch.ones(2)}}})
    assert torch.equal(translated["T.Parameter.weight"], torch.tensor([[0.0, 1.0, 2.0]]))
    assert translated["A.Linear.weight"].shape == (2,)
    assert RECIPE.translate_keys({"model": {"a": {"weight": torch.ones(2)}}}, flatten_state_dict=False) == {}


def test_recipes_do_not_share_their_defaults() -> None:
    first, second = WeightRecipe({}), WeightRecipe({})
    first.key_aliases["a"] = "b"
    first.tensor_reshapes["a"] = (1,)
    assert second.key_aliases == {} and second.tensor_reshapes == {}


def test_what_is_no_tensor_or_holds_nan_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    good, count = torch.ones(2), torch.tensor(3)
    state = {"good": good, "count": count, "step": 7, "bad": torch.tensor([1.0, float("nan")])}
    assert Conversion.filter_tensors_state_dict(state) == {"good": good, "count": count}
    assert [record.getMessage() for record in caplog.records] == [
        "dropped step: a int, no tensor",
        "dropped bad: it holds NaN",
    ]


def test_only_floating_point_is_cast() -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor([70_000])}
    cast = Conversion.change_dtype(state, torch.float16)
    assert {key: value.dtype for key, value in cast.items()} == {
        "a": torch.float16,
        "b": torch.float16,
        "n": torch.int64,
    }
    assert cast["n"].item() == 70_000


class Case:
    """A conversion of a file that lies where the original would be downloaded to."""

    def __init__(self, suffix: str = ".safetensors", expected: str | None = None) -> None:
        self.original = Hub("them/model", f"weights{suffix}")
        self.converted = Hub("us/model", "model.safetensors", expected_sha256=expected)
        self.conversion = Conversion(self.original, self.converted, RECIPE, torch.float16)
        self.original.local_path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> dict[str, Tensor]:
        return {
            "model.a.weight": torch.tensor([[0.1, 2.0]]),
            "model.a.bias": torch.tensor([float("nan")]),
            "model.token": torch.arange(3.0),
            "other": torch.ones(5),
        }


@pytest.fixture(autouse=True)
def location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REFINERS_HUB_PATH", str(tmp_path))
    monkeypatch.setattr(Hub, "check_remote_hash", lambda self: True)
    return tmp_path


def check(converted: Hub) -> None:
    found = load_from_safetensors(converted.local_path)
    assert {key: (value.dtype, value.tolist()) for key, value in found.items()} == {
        "A.Linear.weight": (torch.float16, [[torch.tensor(0.1).half().item(), 2.0]]),
        "T.Parameter.weight": (torch.float16, [[0.0, 1.0, 2.0]]),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".bin"])
def test_an_original_is_converted(suffix: str, location: Path) -> None:
    case = Case(suffix)
    if suffix == ".bin":
        a = {"weight": case.state["model.a.weight"], "bias": case.state["model.a.bias"]}
        torch.save({"model": {"a": a, "token": case.state["model.token"]}, "step": 1}, case.original.local_path)
    else:
        save_to_safetensors(case.original.local_path, case.state)
    case.conversion.convert()
    check(case.converted)
    assert sorted(file.name for file in (location / "us/model").iterdir()) == ["model.safetensors"]


def test_a_right_file_is_not_converted_again(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    save_to_safetensors(case.original.local_path, case.state)
    case.conversion.convert()
    digest = hashlib.sha256(case.converted.local_path.read_bytes()).hexdigest()
    again = Case(expected=digest)
    again.original.local_path.unlink()  # it would be needed
    with caplog.at_level("INFO"):
        again.conversion.convert()
    assert "already converted" in caplog.text


def test_a_result_with_another_hash_is_not_put_in_place() -> None:
    case = Case(expected="0" * 64)
    save_to_safetensors(case.original.local_path, case.state)
    with pytest.raises(AssertionError, match="expected 0000"):
        case.conversion.convert()
    assert list(case.converted.local_path.parent.iterdir()) == []


def test_an_original_without_a_known_name_is_refused() -> None:
    case = Case()
    save_to_safetensors(case.original.local_path, {"other": torch.ones(1)})
    with pytest.raises(ValueError, match="no tensor that is in the recipe"):
        case.conversion.convert()


def test_an_original_that_is_no_dictionary_is_refused() -> None:
    case = Case(".bin")
    torch.save([torch.ones(1)], case.original.local_path)
    with pytest.raises(ValueError, match=r"must hold a dictionary, got list"):
        case.conversion.convert()


def test_a_hub_that_cannot_be_reached_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Hub) -> bool:
        raise ConnectionError("no network")

    monkeypatch.setattr(Hub, "check_remote_hash", fail)
    case = Case()
    save_to_safetensors(case.original.local_path, case.state)
    case.conversion.convert()
    check(case.converted)
    assert "the remote hash is not checked: no network" in caplog.text
