"""What is asked of a file that may be damaged: an error that says what is wrong, or a load that does what it says."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from plain_reading import NotPlain, read_plainly
from tiny_models import Layer, State, layers_of
from torch import Tensor
from update_files import FORMATS
from update_kinds import change_of

from refiners import inspect_lora
from refiners.conversion.lora import LoraPlan, Update, targets_of
from refiners.fluxion.adapters.lora import LayerUpdate
from refiners.foundationals.latent_diffusion import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

_LONGEST_MESSAGE = 20_000  # characters
_ERRORS = (ValueError, TypeError)
# What headers do not tell of the numbers after them.
_FOUND_LATE = "not finite|one for each of the (inputs|outputs)|no update would be attached"


class Counted(io.FileIO):
    """A file that counts the bytes that are read of all such files."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(-1 if size is None else size) or b""
        Counted.total += len(content)
        return content

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer) or 0
        Counted.total += count
        return count


class Case(NamedTuple):
    """A file to check.

    Attributes:
        title: What is wrong with it.
        path: Where it is.
        content: Its bytes, or those of the tensors in a folder.
    """

    title: str
    path: Path
    content: bytes

    def read(self) -> tuple[Mapping[str, Tensor], bool]:
        """Read the tensors in the plainest way, and say whether multipliers stand beside them."""
        if self.path.suffix == ".pt":
            found = torch.load(self.path, weights_only=True, mmap=zipfile.is_zipfile(self.path))
            tensors = found.get("state_dict", found)
            return {key: each.contiguous() for key, each in tensors.items() if isinstance(each, Tensor)}, False
        tensors, said = read_plainly(self.content)
        return tensors, self.path.is_dir() or not said.keys() <= {"format"}


class Checker:
    """Loads files into a model.

    Args:
        model: The model.
    """

    def __init__(self, model: LatentDiffusionModel) -> None:
        self.model = model
        self.manager = SDLoraManager(model)
        self.state = State(model)
        self.places = targets_of(model).places
        self.layers: dict[str, list[Layer]] = {}
        for layer in layers_of(model):
            for format in FORMATS.values():
                if format.prefixes:
                    self.layers.setdefault(format.name_of(layer), []).append(layer)

    def check(self, case: Case) -> str:
        """Inspect and load a file; raise `AssertionError` if something does not hold.

        Returns:
            What became of it: `"error"`, `"attached"` or `"attached by order"`.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            alone = self._attempt(case, lambda: self._inspect(case, None))
            report = self._attempt(case, lambda: self._inspect(case, self.model))
            plan = self._attempt(case, lambda: self._load(case))
            by_order = isinstance(plan, LoraPlan) and bool(plan.of_status("by order"))
            if isinstance(plan, LoraPlan) and not by_order:
                assert not isinstance(alone, str), f"it is loaded, but not inspected: {alone}"
                assert not isinstance(report, str) and report.plan.is_whole, "it is loaded, but does not fit"
                self._check_updates(plan, case)
            elif isinstance(plan, str) and not isinstance(report, str) and report.plan.is_whole:
                assert re.search(_FOUND_LATE, plan), f"it fits, but is not loaded: {plan}"
            if isinstance(plan, LoraPlan):
                self.manager.remove_all()
        self.state.check()
        texts = {str(each.message) for each in caught}
        assert all("attached by order and shape" in text for text in texts) and not (by_order and not texts), texts
        return "error" if isinstance(plan, str) else "attached by order" if by_order else "attached"

    def _attempt(self, case: Case, call: Callable[[], Any]) -> Any:
        """Call something that may raise an error that is documented, and give the message of that."""
        try:
            return call()
        except _ERRORS as error:
            kind, message = type(error), str(error)
        assert kind in _ERRORS, f"{kind.__name__}: {message}"
        assert case.path.name in message, f"the message does not name the file: {message[:500]}"
        self._check_text(message)
        return message

    def _check_text(self, text: str) -> None:
        odd = {char for char in text if not (char.isprintable() or char == "\n")}
        assert not odd, f"the text has the characters {sorted(odd)[:5]}: {text[:500]!r}"
        assert len(text) < _LONGEST_MESSAGE, f"the text has {len(text)} characters"

    def _inspect(self, case: Case, model: LatentDiffusionModel | None) -> Any:
        Counted.total = 0
        report = inspect_lora(case.path, model)
        header = 8 + int.from_bytes(case.content[:8], "little")
        numbers = 16 * len(report.plan.updates)  # multipliers that are not aligned are read
        assert Counted.total <= 48 + header + numbers, f"{Counted.total} bytes are read to inspect it"
        self._check_text(str(report))
        json.dumps(report.to_json(), allow_nan=False)
        return report

    def _load(self, case: Case) -> LoraPlan:
        Counted.total = 0
        try:
            return self.manager.load("x", case.path)
        finally:
            assert Counted.total <= 48 + 4 * len(case.content), f"{Counted.total} bytes are read to load it"

    def _check_updates(self, plan: LoraPlan, case: Case) -> None:
        """Compare what is attached with what the formulas make of the tensors of the file."""
        try:
            tensors, has_settings = case.read()
        except NotPlain as problem:
            raise AssertionError(f"it is loaded, although {problem}") from problem
        attached = dict(self._attached())
        for update in plan.of_status("fits"):
            assert update.part is not None
            layer = self.places[update.part][update.path].layer
            named = self.layers.get(update.name, [])
            assert len(named) != 1 or named[0].module is layer, f"{update.name} is attached to {update.path}"
            parameters = {name: value.detach().double() for name, value in layer.named_parameters(recurse=False)}
            changes = attached.pop(id(layer)).differences(parameters)
            roles = {role: tensors[key] for role, key in update.keys.items()}
            assert all(key.startswith(update.name) for key in update.keys.values())
            scale = _scale(update, roles, has_settings)
            for name, expected in change_of(roles, scale, parameters["weight"], parameters.get("bias")).items():
                found = changes.get(name, torch.zeros_like(expected))
                bound = 1e-5 * (expected.norm() + parameters.get(name, parameters["weight"]).norm())
                error = (found - expected).norm()
                assert error <= bound, f"{name} of {update.name} is changed otherwise: {error:.2e} > {bound:.2e}"
        assert not attached

    def _attached(self) -> Iterator[tuple[int, LayerUpdate]]:
        for adapter in self.manager.lora_adapters:
            for update in adapter.lora_layers:
                assert all(torch.isfinite(each).all() for each in update.parameters()), "it holds infinite numbers"
                yield id(adapter.target), update


def _scale(update: Update, roles: Mapping[str, Tensor], has_settings: bool) -> float:
    """Give what the product of the matrices is to be multiplied by."""
    if has_settings:
        assert math.isfinite(update.scale)
        return update.scale
    return float(roles["alpha"].double()) / update.rank if "alpha" in roles and update.rank else 1.0
