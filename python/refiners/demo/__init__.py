"""The demo: a small diffusion model of handwritten digits, adapted to other domains by LoRAs that mix."""

from refiners.demo.main import main

__all__ = ["main"]
