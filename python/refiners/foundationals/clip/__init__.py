"""CLIP: the encoders of texts and of images."""

from refiners.foundationals.clip.image_encoder import CLIPImageEncoder, CLIPImageEncoderG, CLIPImageEncoderH
from refiners.foundationals.clip.text_encoder import (
    CLIPTextEncoder,
    CLIPTextEncoderG,
    CLIPTextEncoderH,
    CLIPTextEncoderL,
)

__all__ = [
    "CLIPImageEncoder",
    "CLIPImageEncoderG",
    "CLIPImageEncoderH",
    "CLIPTextEncoder",
    "CLIPTextEncoderG",
    "CLIPTextEncoderH",
    "CLIPTextEncoderL",
]
