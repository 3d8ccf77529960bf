"""Latent diffusion models and the layers they are made of."""

from refiners.foundationals.latent_diffusion.range_adapter import (
    RangeAdapter2d,
    RangeEncoder,
    compute_sinusoidal_embedding,
)

__all__ = ["RangeAdapter2d", "RangeEncoder", "compute_sinusoidal_embedding"]
