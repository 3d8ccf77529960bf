"""Latent diffusion models and the layers they are made of."""

from refiners.foundationals.clip.text_encoder import CLIPTextEncoderL
from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.range_adapter import (
    RangeAdapter2d,
    RangeEncoder,
    compute_sinusoidal_embedding,
)
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, LCMSolver, Solver
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import (
    SD1Autoencoder,
    SD1UNet,
    StableDiffusion_1,
    StableDiffusion_1_Inpainting,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import (
    DoubleTextEncoder,
    SDXLAutoencoder,
    SDXLUNet,
    StableDiffusion_XL,
)

__all__ = [
    "CLIPTextEncoderL",
    "DPMSolver",
    "DoubleTextEncoder",
    "LCMSolver",
    "LatentDiffusionAutoencoder",
    "LatentDiffusionModel",
    "RangeAdapter2d",
    "RangeEncoder",
    "SD1Autoencoder",
    "SD1UNet",
    "SDXLAutoencoder",
    "SDXLUNet",
    "Solver",
    "StableDiffusion_1",
    "StableDiffusion_1_Inpainting",
    "StableDiffusion_XL",
    "compute_sinusoidal_embedding",
]
