"""Stable Diffusion 1.5."""

from refiners.foundationals.latent_diffusion.stable_diffusion_1.autoencoder import SD1Autoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_1.model import (
    StableDiffusion_1,
    StableDiffusion_1_Inpainting,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import SD1UNet

__all__ = ["SD1Autoencoder", "SD1UNet", "StableDiffusion_1", "StableDiffusion_1_Inpainting"]
