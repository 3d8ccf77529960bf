"""Weights of IP-Adapters for Stable Diffusion XL."""

import torch

from refiners.conversion.naming.adapters import ip_adapter_keys, ip_adapter_plus_keys
from refiners.conversion.naming.unet import SDXL
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

diffusers_recipe = WeightRecipe(key_map=ip_adapter_keys(SDXL))
plus_diffusers_recipe = WeightRecipe(
    key_map=ip_adapter_plus_keys(SDXL),
    tensor_reshapes={"image_proj.LatentsToken.Parameter.weight": (16, 1280)},
)

base = Conversion(
    original=Hub(
        repo_id="h94/IP-Adapter",
        filename="sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
        revision="018e402774aeeddd60609b4ecdb7e298259dc729",
        expected_sha256="ebf05d918348aec7abb02a5e9ecef77e0aaea6914a5c4ea13f50d45eb1681831",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.ip_adapter",
        filename="model.safetensors",
        expected_sha256="91fc7f3c9571ed26a93372e7251596c7269f37e134fae3a6a5f4f7247d998ab8",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

plus = Conversion(
    original=Hub(
        repo_id="h94/IP-Adapter",
        filename="sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
        revision="018e402774aeeddd60609b4ecdb7e298259dc729",
        expected_sha256="3f5062b8400c94b7159665b21ba5c62acdcd7682262743d7f2aefedef00e6581",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.ip_adapter.plus",
        filename="model.safetensors",
        expected_sha256="9fdbcb4c6e3a643b6e8c002945685cc9d12ddd9787ce8b3e53fdeb814002ca22",
    ),
    recipe=plus_diffusers_recipe,
    dtype=torch.float16,
)
