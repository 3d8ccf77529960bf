"""Download published weights, translate them, and save them in our layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, dtype as DType

from refiners.conversion.download import complete_or_absent
from refiners.conversion.hub import Hub
from refiners.conversion.recipe import AnyDict, TensorDict, WeightRecipe
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors

logger = logging.getLogger(__name__)


class Conversion:
    """A conversion of published weights into a safetensors file in our layout.

    Args:
        original: The published file.
        converted: The file to write, and its hash.
        recipe: How names and shapes are translated.
        dtype: The dtype of the floating point tensors of the result.
    """

    def __init__(self, original: Hub, converted: Hub, recipe: WeightRecipe, dtype: DType) -> None:
        self.original = original
        self.converted = converted
        self.recipe = recipe
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.original!r} -> {self.converted!r})"

    @staticmethod
    def load_state_dict(path: Path) -> AnyDict:
        """Load a file: safetensors by its suffix, otherwise what `torch.save` wrote, of which only data is accepted.

        Raises:
            pickle.UnpicklingError: If the file holds objects that are no plain data; they are not created.
            ValueError: If it does not hold a dictionary.
        """
        if path.suffix in (".safetensors", ".sft"):
            return load_from_safetensors(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, Mapping):
            raise ValueError(f"{path} must hold a dictionary, got {type(content).__name__}")
        return dict(cast("Mapping[str, Any]", content))

    @staticmethod
    def filter_tensors_state_dict(state_dict: AnyDict) -> TensorDict:
        """Drop what is no tensor, and tensors that hold NaN, each with a warning."""
        kept: TensorDict = {}
        for key, value in state_dict.items():
            if not isinstance(value, Tensor):
                logger.warning(f"dropped {key}: a {type(value).__name__}, no tensor")
            elif value.is_floating_point() and bool(torch.isnan(value.flatten()).any()):
                logger.warning(f"dropped {key}: it holds NaN")
            else:
                kept[key] = value
        return kept

    @staticmethod
    def change_dtype(state_dict: TensorDict, dtype: DType) -> TensorDict:
        """Cast the floating point tensors; historically all of them, which ruined counters and indices."""
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()}

    def load_original(self) -> AnyDict:
        """Download the original if it is not there, and load it."""
        self.original.download()
        return self.load_state_dict(self.original.local_path)

    def translate(self, state_dict: AnyDict) -> TensorDict:
        """Give tensors our names and shapes; what a conversion of another kind overrides."""
        flat = self.recipe.flatten_state_dict(state_dict)
        return self.recipe.translate_keys(self.filter_tensors_state_dict(flat), flatten_state_dict=False)

    def convert(self) -> None:
        """Write the converted file, unless it is there with the right hash.

        The file appears under its name only once it is complete and its hash is right.

        Raises:
            ValueError: If nothing in the original is in the recipe.
            AssertionError: If a hash is wrong.
        """
        path = self.converted.local_path
        if path.is_file() and self.converted.check_local_hash():
            logger.info(f"{path} is already converted")
            self._check_remote_hash()
            return
        tensors = self.change_dtype(self.translate(self.load_original()), self.dtype)
        if not tensors:
            raise ValueError(f"{self.original!r} has no tensor that is in the recipe")
        with complete_or_absent(path) as temporary:
            save_to_safetensors(temporary, {key: tensor.contiguous() for key, tensor in tensors.items()})
            self.converted._check_download(temporary)
        self._check_remote_hash()

    def _check_remote_hash(self) -> None:
        """Check the published file, where it can be reached: what is here does not depend on it."""
        try:
            self.converted.check_remote_hash()
        except Exception as error:  # each version of huggingface_hub raises the errors of another HTTP library
            logger.warning(f"{self.converted!r}: the remote hash is not checked: {error}")
