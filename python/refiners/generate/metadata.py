"""What a picture says about how it was made."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from refiners._version import __version__
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.generate.options import Options


def default_scale(model: LatentDiffusionModel) -> float:
    """Give the weight of the guidance that a model has by default."""
    return signature(type(model).__call__).parameters["condition_scale"].default


def describe(options: Options, seed: int, size: tuple[int, int], solver: str, scale: float) -> PngInfo:
    """Write what made an image as text in a PNG.

    Under `parameters` as most programs for these models show it, and under `refiners` as JSON.
    """
    height, width = size
    settings: dict[str, object] = {
        "Steps": options.steps,
        "Sampler": options.solver or solver,
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": Path(options.checkpoint).stem,
        "CFG scale": scale,
    }
    if options.init is not None and options.mask is None:
        settings["Denoising strength"] = options.strength
    loras = "".join(f" <lora:{lora.path.stem}:{lora.scale:g}>" for lora in options.lora)
    lines = [options.prompt + loras]
    if options.negative:
        lines.append(f"Negative prompt: {options.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))

    info = PngInfo()
    info.add_itxt("parameters", "\n".join(lines))
    exact = {
        "version": __version__,
        "checkpoint": Path(options.checkpoint).name,
        "prompt": options.prompt,
        "negative_prompt": options.negative,
        "num_steps": options.steps,
        "condition_scale": scale,
        "seed": seed,
        "size": [height, width],
        "solver": options.solver or solver,
        "dtype": options.dtype,
        "loras": [{"file": lora.path.name, "scale": lora.scale} for lora in options.lora],
        "init_image": options.init.name if options.init else None,
        "mask_image": options.mask.name if options.mask else None,
        "strength": options.strength,
    }
    info.add_itxt("refiners", json.dumps(exact, ensure_ascii=False))
    return info
