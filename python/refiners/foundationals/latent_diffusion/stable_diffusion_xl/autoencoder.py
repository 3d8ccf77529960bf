"""The autoencoder of Stable Diffusion XL."""

from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder


class SDXLAutoencoder(LatentDiffusionAutoencoder):
    """The autoencoder of Stable Diffusion XL: its latents are scaled by 0.13025.

    The published weights exceed float16 in the decoder, which then computes in float32; see `decode`.
    """

    encoder_scale: float = 0.13025
