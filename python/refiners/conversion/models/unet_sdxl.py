"""Weights of the U-Nets of Stable Diffusion XL, of LCM and of Lightning."""

from dataclasses import replace

import torch

from refiners.conversion.naming.names import key_map
from refiners.conversion.naming.unet import SDXL, DiffusersUNet, LDMUNet, RefinersSDXLUNet, unet_names
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

_lcm = replace(SDXL, condition_scale=True)

diffusers_recipe = WeightRecipe(key_map=key_map(unet_names(_lcm, DiffusersUNet), unet_names(_lcm, RefinersSDXLUNet)))
civitai_recipe = WeightRecipe(
    key_map=key_map(unet_names(SDXL, LDMUNet), unet_names(SDXL, RefinersSDXLUNet)),
    key_prefix="model.diffusion_model.",
)

juggernautXL_v10 = Conversion(
    original=Hub(
        repo_id="civitai/KandooAi/juggernautXL",
        filename="v10/onefile_fp16.safetensors",
        expected_sha256="d91d35736d8f2be038f760a9b0009a771ecf0a417e9b38c244a84ea4cb9c0c45",
        download_url="https://civitai.com/api/download/models/456194?type=Model&format=SafeTensor&size=full&fp=fp16",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.juggernaut.v10.unet",
        filename="model.safetensors",
        expected_sha256="37fecc51a8738a96af24a61c8497b91c1ee466f0861a9151f5270922a1c887da",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

lcm = Conversion(
    original=Hub(
        repo_id="latent-consistency/lcm-sdxl",
        filename="diffusion_pytorch_model.safetensors",
        revision="8b5d1b76b33abc5a5887c3f9ee8bffea2365dfe1",
        expected_sha256="dce0636b11d99c1d960608bb6fa71923f1ae2365b89a38b49e1a0193a0fc1c43",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.lcm.unet",
        filename="model.safetensors",
        expected_sha256="2ef94cf734477978b104122e0726c39c98354d9316ce2b0a68994596d6d5b8f0",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

lightning_1step = Conversion(
    original=Hub(
        repo_id="ByteDance/SDXL-Lightning",
        filename="sdxl_lightning_1step_unet_x0.safetensors",
        revision="c9a24f48e1c025556787b0c58dd67a091ece2e44",
        expected_sha256="14d53ad5b440a37fc0f429d595d96bf144c5dd842aa5747383e6098c9dbfa644",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.lightning.1step.unet",
        filename="model.safetensors",
        expected_sha256="80aa287f4b76d379d2a7a03613e474d2aeb850a1b1ff5cdc6ae1733aa0dde6be",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

lightning_4step = Conversion(
    original=Hub(
        repo_id="ByteDance/SDXL-Lightning",
        filename="sdxl_lightning_4step_unet.safetensors",
        revision="c9a24f48e1c025556787b0c58dd67a091ece2e44",
        expected_sha256="39a90a8a2a25c1372633c1e8eb1a96f85eab937bcb58cfc6ec9baf66242ec23c",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.lightning.4step.unet",
        filename="model.safetensors",
        expected_sha256="bfd4c5833ec0cf4cf8f889d8199c0dc97b8e9304787f494046f49a2b3db3fbb4",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

stability = Conversion(
    original=Hub(
        repo_id="stabilityai/stable-diffusion-xl-base-1.0",
        filename="unet/diffusion_pytorch_model.safetensors",
        revision="76d28af79639c28a79fa5c6c6468febd3490a37e",
        expected_sha256="357650fbfb3c7b4d94c1f5fd7664da819ad1ff5a839430484b4ec422d03f710a",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.unet",
        filename="model.safetensors",
        expected_sha256="3eb1879ffaff79a1b727ef8440e3e2c966997652cb9732b66332e63e711e8e6c",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
