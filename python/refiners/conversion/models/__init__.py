"""Recipes of conversion, and where the weights are published: one module for each kind of model."""

from refiners.conversion.models import (
    autoencoder_sd15,
    autoencoder_sdxl,
    clip_image_sd21,
    clip_text_sd15,
    clip_text_sdxl,
    controllora_sdxl,
    controlnet_sd15,
    ella,
    ipadapter_sd15,
    ipadapter_sdxl,
    loras,
    preprocessors,
    t2iadapter_sd15,
    t2iadapter_sdxl,
    unet_sd15,
    unet_sdxl,
)

__all__ = [
    "autoencoder_sd15",
    "autoencoder_sdxl",
    "clip_image_sd21",
    "clip_text_sd15",
    "clip_text_sdxl",
    "controllora_sdxl",
    "controlnet_sd15",
    "ella",
    "ipadapter_sd15",
    "ipadapter_sdxl",
    "loras",
    "preprocessors",
    "t2iadapter_sd15",
    "t2iadapter_sdxl",
    "unet_sd15",
    "unet_sdxl",
]
