"""Weights of the two text encoders of Stable Diffusion XL."""

from pathlib import Path

import torch
from torch import dtype as DType

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.naming.clip import SDXL_TEXT, DoubleTextNames, RefinersDoubleText, TransformersText
from refiners.conversion.naming.names import key_map
from refiners.conversion.optional import optional
from refiners.conversion.utils import AnyDict, Conversion, Hub, WeightRecipe

_FOLDERS = ("text_encoder", "text_encoder_2")

diffusers_recipe = WeightRecipe(
    key_map=key_map(
        DoubleTextNames(TransformersText, "text_encoder/", TransformersText, "text_encoder_2/").names(SDXL_TEXT),
        RefinersDoubleText().names(SDXL_TEXT),
    ),
)


class DoubleTextEncoderConversion(Conversion):
    """A conversion of the two text encoders in a repository of diffusers.

    Historically both models were run to find which weight is which; the names tell it as well.

    Args:
        original_repo_id: The repository on the Hugging Face Hub.
        converted: The file to write, and its hash.
        dtype: The dtype of the result.
        revision: The commit, branch or tag of the repository.
    """

    def __init__(
        self, original_repo_id: str, converted: Hub, dtype: DType = torch.float16, revision: str = "main"
    ) -> None:
        original = Hub(repo_id=original_repo_id, filename="", revision=revision)
        super().__init__(original, converted, diffusers_recipe, dtype)

    def load_original(self) -> AnyDict:
        folder = optional("huggingface_hub").snapshot_download(
            self.original.repo_id,
            revision=self.original.revision,
            allow_patterns=[f"{name}/*.{suffix}" for name in _FOLDERS for suffix in ("safetensors", "json")],
        )
        loaded: AnyDict = {}
        for name in _FOLDERS:
            with Checkpoint(Path(folder) / name) as checkpoint:
                loaded |= {f"{name}/{key}": checkpoint.read(key) for key in checkpoint}
        return loaded


juggernautXL_v10 = DoubleTextEncoderConversion(
    original_repo_id="RunDiffusion/Juggernaut-X-v10",
    converted=Hub(
        repo_id="refiners/sdxl.juggernaut.v10.text_encoder",
        filename="model.safetensors",
        expected_sha256="50dde9c171e31d1c9dcd0539ba052e4fe69d90f126c812b0145da40a0a2c4361",
    ),
)

stability = DoubleTextEncoderConversion(
    original_repo_id="stabilityai/stable-diffusion-xl-base-1.0",
    converted=Hub(
        repo_id="refiners/sdxl.text_encoder",
        filename="model.safetensors",
        expected_sha256="238685accd000683e937085fb3a9c147675f5a1d7775a6810696131e93ddb147",
    ),
)
