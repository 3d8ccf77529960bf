"""Weights of the image encoder of Stable Diffusion 2.1 unCLIP, which IP-Adapters use too."""

import torch

from refiners.conversion.naming.clip import CLIP_H_IMAGE, RefinersImage, TransformersImage, clip_names
from refiners.conversion.naming.names import key_map
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

diffusers_recipe = WeightRecipe(
    key_map=key_map(clip_names(CLIP_H_IMAGE, TransformersImage), clip_names(CLIP_H_IMAGE, RefinersImage)),
    tensor_reshapes={"ViTEmbeddings.Concatenate.ClassToken.Parameter.weight": (1, 1280)},
)

unclip_21 = Conversion(
    original=Hub(
        repo_id="stabilityai/stable-diffusion-2-1-unclip",
        filename="image_encoder/model.safetensors",
        revision="e99f66a92bdcd1b0fb0d4b6a9b81b3b37d8bea44",
        expected_sha256="9d277aeaed13ebc0ef33e56027b826a74433d45d755b3e0b3829440c1ea7b72e",
    ),
    converted=Hub(
        repo_id="refiners/sd21.unclip.image_encoder",
        filename="model.safetensors",
        expected_sha256="c9f43e359e06f1a237324c4c11734d6acd7fbddbfd3b1ed4f1b525267bedb812",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
