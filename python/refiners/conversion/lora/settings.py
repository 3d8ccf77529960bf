"""What PEFT and diffusers say of a LoRA beside its tensors: the multipliers that they were trained with."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from refiners.conversion.lora.patterns import Patience, Patterns
from refiners.conversion.lora.peft_config import check_config, shown
from refiners.fluxion.printable import printable

Config = Mapping[str, Any]

METADATA = "lora_adapter_metadata"  # where diffusers writes the configuration of each network
_FILE = "adapter_config.json"  # where PEFT writes that of the only one
_OF_PEFT = "base_model.model."  # what PEFT puts before the names of the modules of a network
_FEEDING = "feedforward_modules"
_NUMBERS = ("lora_alpha", "alpha", "r")


class LoraSettings:
    """The configurations of PEFT that belong to a file, by what the names of their layers begin with.

    Attributes:
        configs: `{"unet": {"r": 16, "lora_alpha": 32, ...}, ...}`; under the empty name, that of all layers.

    Args:
        configs: The same.
        labels: How errors name where each is from.

    Raises:
        ValueError: If a rank is no positive whole number, a multiplier no finite one, or a table of them no table; if
            the file is of another kind, or for other weights than those of the model.
    """

    def __init__(self, configs: Mapping[str, Config] | None = None, labels: Mapping[str, str] | None = None) -> None:
        self.configs = dict(configs or {})
        self._patterns: dict[tuple[str, str], Patterns] = {}
        self._labels: dict[tuple[str, str], str] = {}
        patience = Patience()
        for network, config in self.configs.items():
            where = f"{(labels or {}).get(network, 'the settings')}: {printable(network)}{'.' if network else ''}"
            check_config(config, where)
            for name in _NUMBERS:
                _check_number(config.get(name), f"{where}{name}", name == "r")
            if not isinstance(config.get("use_rslora"), (bool, type(None))):
                raise ValueError(f"{where}use_rslora must be true or false, got {shown(config['use_rslora'])}")
            for name in ("rank_pattern", "alpha_pattern"):
                table: Any = config.get(name) or {}
                if not isinstance(table, Mapping):
                    raise ValueError(f"{where}{name} must be an object, got {shown(table)}")
                self._labels[network, name] = f"{where}{name}"
                self._patterns[network, name] = _read_patterns(cast("Config", table), f"{where}{name}", patience)
            feeding = config.get("feedforward_modules")
            if isinstance(feeding, str):
                label = self._labels[network, _FEEDING] = f"{where}{_FEEDING}"
                self._patterns[network, _FEEDING] = _read_patterns({f"^(?:{feeding})$": 1}, label, patience)
            elif feeding is not None and not _is_list_of_texts(feeding):
                raise ValueError(f"{where}{_FEEDING} must be a text or a list of them, got {shown(feeding)}")

    @classmethod
    def of_file(cls, path: Path, metadata: Mapping[str, str]) -> LoraSettings:
        """Read what is saved in a file of weights, and in a configuration of PEFT next to it.

        Args:
            path: The file, or the folder that holds it.
            metadata: The texts in the file.

        Raises:
            ValueError: If a configuration is no JSON object, or a number in it is none.
        """
        configs = _of_metadata(path, metadata)
        labels = dict.fromkeys(configs, f"{path}: {METADATA}")
        file = (path if path.is_dir() else path.parent) / _FILE
        if file.is_file() and (path.is_dir() or path.stem.startswith("adapter_model")):
            configs[""], labels[""] = _read(file.read_bytes(), str(file)), str(file)
        return cls(configs, labels)

    def alpha(self, name: str) -> float | None:
        """Give the alpha of a layer by its name in the file, if it is said."""
        network, _ = self._split(name)
        config = self.configs.get(network)
        if not config:
            return None
        value = self._find("alpha_pattern", name)
        value = config.get("lora_alpha", config.get("alpha")) if value is None else value
        return None if value is None else float(value)

    def rank(self, name: str) -> int | None:
        """Give the rank that a layer was asked to have by its name in the file, if it is said."""
        network, _ = self._split(name)
        config = self.configs.get(network)
        return (self._find("rank_pattern", name) or config.get("r")) if config else None

    def divisor(self, name: str, rank: int) -> float:
        """Give what alpha is divided by: the rank, or its root where training was stabilized in that way.

        See [[arXiv:2312.03732] rsLoRA](https://arxiv.org/abs/2312.03732), section 3.
        """
        return math.sqrt(rank) if self.configs.get(self._split(name)[0], {}).get("use_rslora") else rank

    def is_of_inputs(self, name: str) -> bool | None:
        """Tell whether IA³ multiplies what a layer gets, by its name in the file, if it is said.

        It does for layers that are named as parts of feed-forward ones: by an expression, or by the ends of names.
        """
        network, own = self._split(name)
        feeding = self.configs.get(network, {}).get(_FEEDING)
        if feeding is None:
            return None
        return self._find(_FEEDING, name) is not None if isinstance(feeding, str) else own.endswith(tuple(feeding))

    def _find(self, table: str, name: str) -> Any:
        network, own = self._split(name)
        try:
            return self._patterns[network, table].find(own)
        except ValueError as error:
            raise ValueError(f"{self._labels[network, table]}: {error}") from error

    def _split(self, name: str) -> tuple[str, str]:
        """Split a name into that of a network and that of a layer in it; the first is empty if it is none of these."""
        if not self.configs:
            return "", name
        beginnings = accumulate(name.split(".")[:-1], "{}.{}".format)
        network = next((each for each in beginnings if each in self.configs), "")
        return network, name[len(network) :].removeprefix("." if network else "").removeprefix(_OF_PEFT)


def _of_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Config]:
    configs: dict[str, dict[str, Any]] = {}
    if METADATA in metadata:
        for key, value in _read(metadata[METADATA], f"{path}: {METADATA}").items():
            network, _, name = key.rpartition(".")
            configs.setdefault(network, {})[name] = value
    return {**configs}


def _read(text: str | bytes, label: str) -> Config:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label} is no JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{label} must hold an object, got {type(content).__name__}")
    return cast("Config", content)


def _read_patterns(table: Mapping[str, Any], label: str, patience: Patience) -> Patterns:
    for pattern, value in table.items():
        _check_number(value, f"{label} of {printable(pattern)!r}", label.endswith("rank_pattern"))
    try:
        return Patterns(table, patience)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[Any]", value))


def _check_number(value: Any, label: str, is_rank: bool) -> None:
    if value is None:
        return
    if is_rank:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise ValueError(f"{label} must be a positive whole number, got {shown(value)}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{label} must be a finite number, got {shown(value)}")
