"""The model of `python -m refiners generate`, ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from PIL import ImageOps
from torch import device as Device

from refiners.conversion.pretrained import load_pretrained
from refiners.conversion.snapshot import download_snapshot
from refiners.fluxion.utils import str_to_dtype
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.requests import size_of_image
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import StableDiffusion_1_Inpainting
from refiners.generate.options import Options
from refiners.generate.solvers import make_solver


class SetupError(Exception):
    """A problem that the user can mend; one line explains it."""


class Setup(NamedTuple):
    """All that it takes to generate."""

    model: LatentDiffusionModel
    size: tuple[int, int]
    """The height and width of the images, in pixels."""
    init_image: PIL.Image.Image | None
    """What to start from."""


def set_up(options: Options) -> Setup:
    """Read the pictures, load the checkpoint, and set up what was asked for.

    Raises:
        SetupError: If there is no such device, the checkpoint, a LoRA or a picture cannot be read, or they do not fit
            together.
    """
    device = find_device(options.device)
    dtype = str_to_dtype(options.dtype or ("float32" if device.type == "cpu" else "float16"))
    try:
        image, mask = (None if path is None else read_picture(path) for path in (options.init, options.mask))
        checkpoint = download_snapshot(str(options.checkpoint)) if options.download else options.checkpoint
        model: LatentDiffusionModel = load_pretrained(LatentDiffusionModel, checkpoint, device=device, dtype=dtype)
        if options.solver is not None:
            model.solver = make_solver(options.solver, model.solver).to(device=device, dtype=dtype)
        model.set_inference_steps(options.steps)
        add_loras(model, options)
    except (ValueError, OSError, NotImplementedError, AssertionError, ImportError) as error:
        raise SetupError(str(error)) from error
    size = options.size or (size_of_image(image) if image else (model.default_size, model.default_size))
    if isinstance(model, StableDiffusion_1_Inpainting):
        if image is None or mask is None:
            raise SetupError(f"{options.checkpoint} paints into a mask: give --init and --mask")
        width_and_height = size[1], size[0]
        model.set_inpainting_conditions(
            image.convert("RGB").resize(width_and_height), mask.convert("L").resize(width_and_height)
        )
        return Setup(model, size, None)
    if mask is not None:
        raise SetupError(f"argument --mask: {options.checkpoint} is no checkpoint that paints into a mask")
    return Setup(model, size, None if image is None else image.convert("RGB"))


def read_picture(path: Path) -> PIL.Image.Image:
    """Read a picture as it is to be seen; cameras note how they were held."""
    with path.open("rb") as file:
        return ImageOps.exif_transpose(PIL.Image.open(file))  # a copy, read to its end


def find_device(name: str) -> Device:
    """Give a device that tensors can be put on.

    Raises:
        SetupError: If there is no such device here.
    """
    if name == "meta":
        raise SetupError("argument --device: 'meta' computes nothing")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"argument --device: {name!r} is not to be had here: {reason}") from error
    return torch.device(name)


def add_loras(model: LatentDiffusionModel, options: Options) -> None:
    """Attach the LoRAs, named after their files.

    Raises:
        SetupError: If something in a file cannot be attached.
    """
    manager = SDLoraManager(model)
    for number, lora in enumerate(options.lora, start=1):
        stem = lora.path.stem
        name = f"{stem} ({number})" if stem in manager.names else stem
        try:
            manager.load(name, lora.path, lora.scale)
        except (ValueError, AssertionError) as error:
            first, *rest = str(error).splitlines()
            first = first if str(lora.path) in first else f"{lora.path}: {first}"
            hint = (
                f" python -m refiners inspect {lora.path} --checkpoint {options.checkpoint} lists them" if rest else ""
            )
            raise SetupError(f"argument --lora: {first}{hint}") from error
    model.requires_grad_(False)
