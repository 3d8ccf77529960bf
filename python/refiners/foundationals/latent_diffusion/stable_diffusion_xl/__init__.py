"""Stable Diffusion XL."""

from refiners.foundationals.latent_diffusion.stable_diffusion_xl.autoencoder import SDXLAutoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import StableDiffusion_XL
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import DoubleTextEncoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import SDXLUNet

__all__ = ["DoubleTextEncoder", "SDXLAutoencoder", "SDXLUNet", "StableDiffusion_XL"]
