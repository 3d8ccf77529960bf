"""Weights of other libraries, converted to ours. Importing this package needs no optional dependency."""

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.description import ComponentDescription, Description, describe
from refiners.conversion.detection import Found
from refiners.conversion.diffusion import (
    DiffusionCheckpoint,
    InferenceConfig,
    SchedulerConfig,
    open_diffusion_checkpoint,
)
from refiners.conversion.loading import load_into, read_weights, to_diffusers
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
    "Checkpoint",
    "ComponentDescription",
    "Description",
    "DiffusionCheckpoint",
    "Found",
    "InferenceConfig",
    "SchedulerConfig",
    "autoencoder_sd15",
    "autoencoder_sdxl",
    "clip_image_sd21",
    "clip_text_sd15",
    "clip_text_sdxl",
    "controllora_sdxl",
    "controlnet_sd15",
    "describe",
    "ella",
    "ipadapter_sd15",
    "ipadapter_sdxl",
    "load_into",
    "loras",
    "open_diffusion_checkpoint",
    "preprocessors",
    "read_weights",
    "t2iadapter_sd15",
    "t2iadapter_sdxl",
    "to_diffusers",
    "unet_sd15",
    "unet_sdxl",
]
