"""Weights of IP-Adapters for Stable Diffusion 1.5."""

import torch

from refiners.conversion.naming.adapters import ip_adapter_keys, ip_adapter_plus_keys
from refiners.conversion.naming.unet import SD15
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

diffusers_recipe = WeightRecipe(key_map=ip_adapter_keys(SD15))
diffusers_plus_recipe = WeightRecipe(
    key_map=ip_adapter_plus_keys(SD15),
    tensor_reshapes={"image_proj.LatentsToken.Parameter.weight": (16, 768)},
)

base = Conversion(
    original=Hub(
        repo_id="h94/IP-Adapter",
        filename="models/ip-adapter_sd15.safetensors",
        revision="018e402774aeeddd60609b4ecdb7e298259dc729",
        expected_sha256="289b45f16d043d0bf542e45831f971dcdaabe18b656f11e86d9dfba7e9ee3369",
    ),
    converted=Hub(
        repo_id="refiners/sd15.ip_adapter",
        filename="model.safetensors",
        expected_sha256="ebabe531bac205e2fac942b353c22066abfb115b02f7fb72cd0e3361ee838ef3",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

plus = Conversion(
    original=Hub(
        repo_id="h94/IP-Adapter",
        filename="models/ip-adapter-plus_sd15.safetensors",
        revision="018e402774aeeddd60609b4ecdb7e298259dc729",
        expected_sha256="a1c250be40455cc61a43da1201ec3f1edaea71214865fb47f57927e06cbe4996",
    ),
    converted=Hub(
        repo_id="refiners/sd15.ip_adapter.plus",
        filename="model.safetensors",
        expected_sha256="6eae5d2098fa83e3b8bf416fb46dd77a921ad044650f13890e8d41d7c84a71d2",
    ),
    recipe=diffusers_plus_recipe,
    dtype=torch.float16,
)
