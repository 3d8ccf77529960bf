"""The public names and their signatures: programs call them by position and by keyword, so neither may change."""

import importlib
import inspect
import runpy
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import refiners.fluxion.layers as fl
from refiners import _version

API = Path(__file__).parent / "data" / "public_api.txt"


def read_entries() -> list[tuple[str, str]]:
    """Give each name with its module."""
    entries: list[tuple[str, str]] = []
    module = ""
    for line in API.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            entries.append((module, line.strip()))
        elif not line.startswith("#"):
            module = line
    return entries


ENTRIES = read_entries()


def described(module: str, entry: str) -> str:
    """Describe the object that an entry names as the entries do."""
    path = entry.split("(")[0].split(" ")[0]
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if isinstance(found, property):
        return f"{path} property"
    if "(" not in entry:
        return path
    plain = inspect.signature(found)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in plain.parameters.values()]
    return path + str(plain.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize(("module", "entry"), ENTRIES, ids=lambda text: text.split("(")[0])
def test_a_public_name_has_its_signature(module: str, entry: str) -> None:
    assert described(module, entry) == entry.replace(" | ", ", ")


def test_every_layer_is_in_the_table() -> None:
    listed = {entry.split("(")[0] for _, entry in ENTRIES}
    assert set(fl.__all__) <= listed


def test_every_layer_is_a_module_of_torch_and_ours() -> None:
    others = {"GeLUApproximation"}
    assert all(issubclass(getattr(fl, name), (fl.Module, nn.Module)) for name in {*fl.__all__} - others)


def test_device_and_dtype_come_last_and_may_be_left_out() -> None:
    seen = 0
    for module, entry in ENTRIES:
        found = getattr(importlib.import_module(module), entry.split("(")[0], None)
        if not inspect.isclass(found) or " device=" not in entry:
            continue
        parameters = list(inspect.signature(found, eval_str=True).parameters.values())[-2:]
        assert [(p.name, p.default, p.annotation) for p in parameters] == [
            ("device", None, torch.device | str | None),
            ("dtype", None, torch.dtype | None),
        ], entry
        seen += 1
    assert seen > 15


def test_some_names_are_reached_through_their_modules_only() -> None:
    names = "ChainError ReturnException ModuleTree TreeNode scaled_dot_product_attention generate_unique_names"
    assert not [name for name in names.split() if hasattr(fl, name)]


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: f"version of {name}")
    assert runpy.run_path(_version.__file__)["__version__"] == "version of refiners"


def test_the_package_says_that_it_is_typed() -> None:
    assert files("refiners").joinpath("py.typed").is_file()
