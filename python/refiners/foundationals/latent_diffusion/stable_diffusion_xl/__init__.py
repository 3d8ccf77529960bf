"""Stable Diffusion XL."""

from refiners.foundationals.latent_diffusion.stable_diffusion_xl.autoencoder import SDXLAutoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import SDXLUNet

__all__ = ["SDXLAutoencoder", "SDXLUNet"]
