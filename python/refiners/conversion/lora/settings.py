"""What PEFT and diffusers say of a LoRA beside its tensors: the multipliers that they were trained with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

Config = Mapping[str, Any]

METADATA = "lora_adapter_metadata"  # where diffusers writes the configuration of each network
_FILE = "adapter_config.json"  # where PEFT writes that of the only one


class LoraSettings:
    """The configurations of PEFT that belong to a file, by what the names of their layers begin with.

    Attributes:
        configs: `{"unet": {"r": 16, "lora_alpha": 32, ...}, ...}`; under the empty name, that of all layers.
    """

    def __init__(self, configs: Mapping[str, Config] | None = None) -> None:
        self.configs = dict(configs or {})

    @classmethod
    def of_file(cls, path: Path, metadata: Mapping[str, str]) -> LoraSettings:
        """Read what is saved in a file of weights, and in a configuration of PEFT next to it.

        Args:
            path: The file, or the folder that holds it.
            metadata: The texts in the file.

        Raises:
            ValueError: If a configuration is no JSON object.
        """
        configs: dict[str, dict[str, Any]] = {}
        if METADATA in metadata:
            for key, value in _read(metadata[METADATA], f"{path}: {METADATA}").items():
                network, _, name = key.rpartition(".")
                configs.setdefault(network, {})[name] = value
        file = (path if path.is_dir() else path.parent) / _FILE
        if file.is_file() and (path.is_dir() or path.stem.startswith("adapter_model")):
            configs[""] = dict(_read(file.read_text(encoding="utf-8"), str(file)))
        return cls(configs)

    def alpha(self, name: str) -> float | None:
        """Give the alpha of a layer by its name in the file, if it is said."""
        config = self._config_of(name)
        if not config:
            return None
        value = _by_pattern(config, "alpha_pattern", name, config.get("lora_alpha", config.get("alpha")))
        return float(value) if isinstance(value, (int, float)) else None

    def rank(self, name: str) -> int | None:
        """Give the rank that a layer was asked to have by its name in the file, if it is said."""
        config = self._config_of(name)
        value = _by_pattern(config, "rank_pattern", name, config.get("r")) if config else None
        return value if isinstance(value, int) else None

    def divisor(self, name: str, rank: int) -> float:
        """Give what alpha is divided by: the rank, or its root where training was stabilized in that way.

        See [[arXiv:2312.03732] rsLoRA](https://arxiv.org/abs/2312.03732), section 3.
        """
        return math.sqrt(rank) if self._config_of(name).get("use_rslora") else rank

    def _config_of(self, name: str) -> Config:
        network = next((each for each in self.configs if each and name.startswith(f"{each}.")), "")
        return self.configs.get(network, {})


def _by_pattern(config: Config, key: str, name: str, default: Any) -> Any:
    """Look a layer up in a table by endings of names, which are regular expressions, as PEFT does."""
    patterns = cast("Mapping[str, Any]", config.get(key) or {})
    return next((value for each, value in patterns.items() if re.match(rf"(.*\.)?({each})$", name)), default)


def _read(text: str, label: str) -> Mapping[str, Any]:
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{label} is no JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{label} must hold an object, got {type(content).__name__}")
    return cast("Mapping[str, Any]", content)
