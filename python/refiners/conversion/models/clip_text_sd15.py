"""Weights of the text encoders of Stable Diffusion 1.5."""

from dataclasses import replace

import torch

from refiners.conversion.naming.clip import CLIP_L, BareTransformersText, RefinersText, TransformersText, clip_names
from refiners.conversion.naming.names import key_map
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

_projected = replace(CLIP_L, projection=True)

diffusers_recipe = WeightRecipe(
    key_map=key_map(clip_names(_projected, TransformersText), clip_names(_projected, RefinersText)),
)
civitai_recipe = WeightRecipe(
    key_map=key_map(clip_names(CLIP_L, BareTransformersText), clip_names(CLIP_L, RefinersText)),
    key_prefix="cond_stage_model.transformer.text_model.",
)

juggernaut_aftermath = Conversion(
    original=Hub(
        repo_id="civitai/KandooAi/juggernaut",
        filename="aftermath/onefile_fp32.safetensors",
        expected_sha256="7ed60a2f5842de8e6755965ffbf2a0ee273429939f307233c22f7dffd8d7ae3d",
        download_url="https://civitai.com/api/download/models/127207?type=Model&format=SafeTensor&size=full&fp=fp32",
    ),
    converted=Hub(
        repo_id="refiners/sd15.juggernaut.aftermath.text_encoder",
        filename="model.safetensors",
        expected_sha256="388ba94024540d450c32c6bdaa05a76c8f7ef42f6aef478b2e95a49220b1fd66",
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
        repo_id="refiners/sd15.juggernaut.reborn.text_encoder",
        filename="model.safetensors",
        expected_sha256="c649e079cbef5ccd79ef643acac29363d153d5a5f719e9c2e1893c96ec8b2357",
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
        repo_id="refiners/sd15.realistic_stock_photo.v3_0.text_encoder",
        filename="model.safetensors",
        expected_sha256="6d37d5b8ea7f7628cdaada6ce61bbba3914143d8f88d5b722c120ffdcb408512",
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
        repo_id="refiners/sd15.realistic_vision.v5_1.text_encoder",
        filename="model.safetensors",
        expected_sha256="b34349a39f1ad882885cc5da917aeaa92935c1b80eefbce03a6c46959ed97b10",
    ),
    recipe=civitai_recipe,
    dtype=torch.float16,
)

runwayml = Conversion(
    original=Hub(
        repo_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        filename="text_encoder/model.safetensors",
        revision="f03de327dd89b501a01da37fc5240cf4fdba85a1",
        expected_sha256="d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
    ),
    converted=Hub(
        repo_id="refiners/sd15.text_encoder",
        filename="model.safetensors",
        expected_sha256="88a171b02f5bad8e61723f9c065ddb00351970a6e3f7f5a2a46970700e90f69d",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
