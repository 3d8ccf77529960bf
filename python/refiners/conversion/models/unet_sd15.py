"""Weights of the U-Nets of Stable Diffusion 1.5, and offsets of IC-Light, which have the same names."""

import torch

from refiners.conversion.naming.names import key_map
from refiners.conversion.naming.unet import SD15, DiffusersUNet, LDMUNet, RefinersUNet, unet_names
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

_ours = unet_names(SD15, RefinersUNet)

diffusers_recipe = WeightRecipe(key_map=key_map(unet_names(SD15, DiffusersUNet), _ours))
civitai_recipe = WeightRecipe(
    key_map=key_map(unet_names(SD15, LDMUNet), _ours),
    key_prefix="model.diffusion_model.",
)

ic_light_fbc = Conversion(
    original=Hub(
        repo_id="lllyasviel/ic-light",
        filename="iclight_sd15_fbc.safetensors",
        revision="f5950d474dc0cd5bb5a0c66189534cd13f28eb70",
        expected_sha256="bb8ccedaa4944b16cfa8356afcbc2c2174cc4c4af57de19124ae0cddd0d96947",
    ),
    converted=Hub(
        repo_id="refiners/sd15.ic_light.fbc",
        filename="model.safetensors",
        expected_sha256="c79f275b94566da66801cf8fe9c1872202ff5c9b634d321a7e6ecaface0e456f",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

ic_light_fc = Conversion(
    original=Hub(
        repo_id="lllyasviel/ic-light",
        filename="iclight_sd15_fc.safetensors",
        revision="f5950d474dc0cd5bb5a0c66189534cd13f28eb70",
        expected_sha256="a033fbaaa2f3f7859fa6a4477ee63ebbf9c116bf3569d5811856d2807f3468cd",
    ),
    converted=Hub(
        repo_id="refiners/sd15.ic_light.fc",
        filename="model.safetensors",
        expected_sha256="2d4e8ff0ac65274ec9655eeac459226e4790de1326e4338e34c4348bdf763350",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

ic_light_fcon = Conversion(
    original=Hub(
        repo_id="lllyasviel/ic-light",
        filename="iclight_sd15_fcon.safetensors",
        revision="f5950d474dc0cd5bb5a0c66189534cd13f28eb70",
        expected_sha256="37652ef27028c8fdb9882830b1621e4e648d26e19cb2035a6af8d52f3a6d8d87",
    ),
    converted=Hub(
        repo_id="refiners/sd15.ic_light.fcon",
        filename="model.safetensors",
        expected_sha256="856cf6a6cb6b57335073c3140bb38c3cc35bcffa69cd8a57c166fac37b3594d4",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

juggernaut_aftermath = Conversion(
    original=Hub(
        repo_id="civitai/KandooAi/juggernaut",
        filename="aftermath/onefile_fp32.safetensors",
        expected_sha256="7ed60a2f5842de8e6755965ffbf2a0ee273429939f307233c22f7dffd8d7ae3d",
        download_url="https://civitai.com/api/download/models/127207?type=Model&format=SafeTensor&size=full&fp=fp32",
    ),
    converted=Hub(
        repo_id="refiners/sd15.juggernaut.aftermath.unet",
        filename="model.safetensors",
        expected_sha256="60312c91cb1807f9e1e1801b0686d9492fcea2b54835c7934b7aa433db0878e2",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

juggernaut_aftermath_inpainting = Conversion(
    original=Hub(
        repo_id="civitai/KandooAi/juggernaut",
        filename="aftermath-inpainting/onefile_fp32.safetensors",
        expected_sha256="b370189733ef44a3661a96139c02fde22d36df5ad12d1112b0b56fc3d6bfbdba",
        download_url="https://civitai.com/api/download/models/129549?type=Model&format=SafeTensor&size=full&fp=fp32",
    ),
    converted=Hub(
        repo_id="refiners/sd15.juggernaut.aftermath.unet_inpainting",
        filename="model.safetensors",
        expected_sha256="6fc035c3cb865ec1efe72005ff7a70d8605616c64ca68466e161c8a570bdab87",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

juggernaut_reborn = Conversion(
    original=Hub(
        repo_id="civitai/KandooAi/juggernaut",
        filename="reborn/onefile_fp16.safetensors",
        expected_sha256="338b85bc4f7628bc42cce336242e79154a57c2a4360531436e97f7793568f18c",
        download_url="https://civitai.com/api/download/models/274039?type=Model&format=SafeTensor&size=pruned&fp=fp16",
    ),
    converted=Hub(
        repo_id="refiners/sd15.juggernaut.reborn.unet",
        filename="model.safetensors",
        expected_sha256="64a75d16fdb11faeedbef8270fcdfe3051284f743cdf46d8bb89c09499a22591",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

realistic_stock_photo_v3 = Conversion(
    original=Hub(
        repo_id="Yntec/realisticStockPhoto3",
        filename="realisticStockPhoto_v30SD15.safetensors",
        expected_sha256="f85affae9aae16276eaf670f810946e2d03c4d300791a0380f07653cb78ba31b",
    ),
    converted=Hub(
        repo_id="refiners/sd15.realistic_stock_photo.v3_0.unet",
        filename="model.safetensors",
        expected_sha256="18a8616375a8738cc051c3d5a63979e7d40dec4d720f88247424db2ebd663131",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

realistic_vision_v5 = Conversion(
    original=Hub(
        repo_id="civitai/SG_161222/realistic_vision",
        filename="v5/onefile_fp32.safetensors",
        expected_sha256="ef76aa2332635f4352463343beec9c5aae3bd107a73c0fd7221abbbcf8bd5470",
        download_url="https://civitai.com/api/download/models/130072?type=Model&format=SafeTensor&size=full&fp=fp16",
    ),
    converted=Hub(
        repo_id="refiners/sd15.realistic_vision.v5_1.unet",
        filename="model.safetensors",
        expected_sha256="3d6fc9cb9eabb1487e0337ed17ab29bbfabfc5e5faf47c3635a4ee73b5bb1164",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

runwayml = Conversion(
    original=Hub(
        repo_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        filename="unet/diffusion_pytorch_model.safetensors",
        revision="f03de327dd89b501a01da37fc5240cf4fdba85a1",
        expected_sha256="19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
    ),
    converted=Hub(
        repo_id="refiners/sd15.unet",
        filename="model.safetensors",
        expected_sha256="6c0488a590f151128565bac105dbc3ce6563643f270c5c32ea756fa317a1c256",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

runwayml_inpainting = Conversion(
    original=Hub(
        repo_id="stable-diffusion-v1-5/stable-diffusion-inpainting",
        filename="unet/diffusion_pytorch_model.fp16.safetensors",
        revision="8a4288a76071f7280aedbdb3253bdb9e9d5d84bb",
        expected_sha256="24b788b4a777748377cc20364eea4ae113c8c42f4468c16bc8c02fdae5492af9",
    ),
    converted=Hub(
        repo_id="refiners/sd15.unet_inpainting",
        filename="model.safetensors",
        expected_sha256="331283db7631bfe0027d5f7107ec00ac64679e25fe6e195b79a7b040ad3666ae",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
