"""Weights of T2I-Adapters for Stable Diffusion 1.5."""

import torch

from refiners.conversion.naming.adapters import t2i_adapter_keys
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

diffusers_recipe = WeightRecipe(key_map=t2i_adapter_keys())

depth = Conversion(
    original=Hub(
        repo_id="TencentARC/t2iadapter_depth_sd15v2",
        filename="diffusion_pytorch_model.bin",
        revision="9f96518933daa6c9386692914f72af81a0f6978f",
        expected_sha256="68aaebf5e7d5eeb62eaea9476c68d279ba98d0876b385cc925e12c43cee19edd",
    ),
    converted=Hub(
        repo_id="refiners/sd15.t2i_adapter.depth",
        filename="model.safetensors",
        expected_sha256="0178baeb59713ef4ae4dcbca0a2d3447fdd42bbeeaed019d3dc01f0f1913f74f",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
