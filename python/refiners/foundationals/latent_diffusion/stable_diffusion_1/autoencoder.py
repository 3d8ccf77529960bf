"""The autoencoder of Stable Diffusion 1.5."""

from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder


class SD1Autoencoder(LatentDiffusionAutoencoder):
    """The autoencoder of Stable Diffusion 1.5: its latents are scaled by 0.18215."""

    encoder_scale: float = 0.18215
