"""Weights of the autoencoders of Stable Diffusion 1.5."""

import torch

from refiners.conversion.naming.autoencoder import (
    SD_AUTOENCODER,
    DiffusersAutoencoder,
    LDMAutoencoder,
    OldDiffusersAutoencoder,
    RefinersAutoencoder,
    autoencoder_names,
)
from refiners.conversion.naming.names import key_map
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

_ours = autoencoder_names(SD_AUTOENCODER, RefinersAutoencoder)
_diffusers = autoencoder_names(SD_AUTOENCODER, DiffusersAutoencoder)
_old = autoencoder_names(SD_AUTOENCODER, OldDiffusersAutoencoder)

diffusers_recipe = WeightRecipe(
    key_map=key_map(_diffusers, _ours),
    key_aliases={old.layer: new.layer for old, new in zip(_old, _diffusers) if old != new},
)
civitai_recipe = WeightRecipe(
    key_map=key_map(autoencoder_names(SD_AUTOENCODER, LDMAutoencoder), _ours),
    key_prefix="first_stage_model.",
    # The original implementation has 1×1 convolutions where ours has linear layers.
    tensor_reshapes={name.key("weight"): (512, 512) for name in _ours if ".SelfAttention2d." in name.layer},
)

juggernaut_aftermath = Conversion(
    original=Hub(
        repo_id="civitai/KandooAi/juggernaut",
        filename="aftermath/onefile_fp32.safetensors",
        expected_sha256="7ed60a2f5842de8e6755965ffbf2a0ee273429939f307233c22f7dffd8d7ae3d",
        download_url="https://civitai.com/api/download/models/127207?type=Model&format=SafeTensor&size=full&fp=fp32",
    ),
    converted=Hub(
        repo_id="refiners/sd15.juggernaut.aftermath.autoencoder",
        filename="model.safetensors",
        expected_sha256="83d147dd0d25231e49ba35820f7dd7f0902ba6e93237d00b6caee0599f010618",
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
        repo_id="refiners/sd15.juggernaut.reborn.autoencoder",
        filename="model.safetensors",
        expected_sha256="6f1ed875201344031f2a9ddee3ff40f455eb2a5ee4833070061a5d163cb23595",
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
        repo_id="refiners/sd15.realistic_stock_photo.v3_0.autoencoder",
        filename="model.safetensors",
        expected_sha256="4b484e70be3b898e2647985f066495672162a4e9ea1d1ee8bf1f7a7895180fce",
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
        repo_id="refiners/sd15.realistic_vision.v5_1.autoencoder",
        filename="model.safetensors",
        expected_sha256="4b484e70be3b898e2647985f066495672162a4e9ea1d1ee8bf1f7a7895180fce",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

runwayml = Conversion(
    original=Hub(
        repo_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        filename="vae/diffusion_pytorch_model.safetensors",
        revision="f03de327dd89b501a01da37fc5240cf4fdba85a1",
        expected_sha256="a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
    ),
    converted=Hub(
        repo_id="refiners/sd15.autoencoder",
        filename="model.safetensors",
        expected_sha256="3f499ef1c668a8dfc72762d885f53cf0c3d3e98a393211906a8de5ae04e72058",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float32,
)

stability_mse = Conversion(
    original=Hub(
        repo_id="stabilityai/sd-vae-ft-mse",
        filename="diffusion_pytorch_model.safetensors",
        revision="31f26fdeee1355a5c34592e401dd41e45d25a493",
        expected_sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    ),
    converted=Hub(
        repo_id="refiners/sd15.autoencoder_mse",
        filename="model.safetensors",
        expected_sha256="4b484e70be3b898e2647985f066495672162a4e9ea1d1ee8bf1f7a7895180fce",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
