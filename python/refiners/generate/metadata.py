"""What a picture says about how it was made."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from refiners._version import __version__
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.generate.options import Options
from refiners.generate.solvers import is_trailing, name_of


def default_scale(model: LatentDiffusionModel) -> float:
    """Give the weight of the guidance that a model has by default."""
    return signature(type(model).__call__).parameters["condition_scale"].default


def describe(options: Options, model: LatentDiffusionModel, seed: int, size: tuple[int, int]) -> PngInfo:
    """Write what made an image as text in a PNG.

    Under `parameters` as most programs for these models show it, and under `refiners` as JSON: there, all choices that
    were left to the model are as they were made, with the names that the options have.
    """
    height, width = size
    scale = default_scale(model) if options.scale is None else options.scale
    solver = name_of(model.solver)
    settings: dict[str, object] = {
        "Steps": options.steps,
        "Sampler": solver,
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": _stem(Path(options.checkpoint)),
        "CFG scale": scale,
    }
    if options.init is not None and options.mask is None:
        settings["Denoising strength"] = options.strength
    loras = "".join(f" <lora:{_stem(lora.path)}:{lora.scale:g}>" for lora in options.lora)
    lines = [options.prompt + loras]
    if options.negative:
        lines.append(f"Negative prompt: {options.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))

    info = PngInfo()
    info.add_itxt("parameters", "\n".join(lines))
    exact = {
        "version": __version__,
        "checkpoint": str(options.checkpoint) if options.download else Path(options.checkpoint).absolute().name,
        "download": options.download,
        "variant": options.variant,
        "prompt": options.prompt,
        "negative_prompt": options.negative,
        "num_steps": options.steps,
        "condition_scale": scale,
        "seed": seed,
        "size": [height, width],
        "solver": solver,
        "trailing": is_trailing(model.solver),
        "prediction": model.solver.params.model_prediction_type.value,
        "tiled": options.tiled,
        "device": options.device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "loras": [{"file": lora.path.name, "scale": lora.scale} for lora in options.lora],
        "partial": options.partial,
        "init_image": options.init.name if options.init else None,
        "mask_image": options.mask.name if options.mask else None,
        "strength": options.strength,
    }
    info.add_itxt("refiners", json.dumps(exact, ensure_ascii=False))
    return info


def _stem(path: Path) -> str:
    """Give the name of a file or folder without the suffix of weights: a folder may end in `.5`."""
    return path.absolute().name.removesuffix(".safetensors").removesuffix(".ckpt")
