"""Weights of preprocessors of images."""

import torch

from refiners.conversion.naming.adapters import informative_drawings_keys
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

informative_drawings_recipe = WeightRecipe(key_map=informative_drawings_keys())

informative_drawings = Conversion(
    original=Hub(
        repo_id="carolineec/informativedrawings",
        filename="model.pth",
        expected_sha256="30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0",
        download_url="https://huggingface.co/spaces/carolineec/informativedrawings/resolve/main/model2.pth",
    ),
    converted=Hub(
        repo_id="refiners/preprocessor.informativedrawings",
        filename="model.safetensors",
        expected_sha256="0f9a34bfcd95d89aedcc213b8d279ba1bab1279b73d8d009d1632d6276e6fcf3",
    ),
    recipe=informative_drawings_recipe,
    dtype=torch.float32,
)
