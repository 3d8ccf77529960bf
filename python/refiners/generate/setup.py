"""The model of `python -m refiners generate`, ready to run."""

from __future__ import annotations

import torch
from PIL import Image
from torch import device as Device

from refiners.conversion.pretrained import load_pretrained
from refiners.conversion.snapshot import download_snapshot
from refiners.fluxion.utils import str_to_dtype
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import StableDiffusion_1_Inpainting
from refiners.generate.options import Options
from refiners.generate.solvers import make_solver


class SetupError(Exception):
    """A problem that the user can mend; one line explains it."""


def load_model(options: Options) -> LatentDiffusionModel:
    """Load the checkpoint, and set up what was asked for.

    Raises:
        SetupError: If there is no such device, the checkpoint, a LoRA or a picture cannot be read, or they do not fit
            together.
    """
    device = find_device(options.device)
    dtype = str_to_dtype(options.dtype or ("float32" if device.type == "cpu" else "float16"))
    try:
        checkpoint = download_snapshot(str(options.checkpoint)) if options.download else options.checkpoint
        model: LatentDiffusionModel = load_pretrained(LatentDiffusionModel, checkpoint, device=device, dtype=dtype)
        if options.solver is not None:
            model.solver = make_solver(options.solver, model.solver).to(device=device, dtype=dtype)
        add_loras(model, options)
        if isinstance(model, StableDiffusion_1_Inpainting):
            _set_mask(model, options)
        elif options.mask is not None:
            raise SetupError(f"argument --mask: {options.checkpoint} is no checkpoint that paints into a mask")
        for path in (options.init, options.mask):
            if path is not None:
                Image.open(path).verify()
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        raise SetupError(str(error)) from error
    return model


def find_device(name: str) -> Device:
    """Give a device that tensors can be put on.

    Raises:
        SetupError: If there is no such device here.
    """
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
        except ValueError as error:
            first, *rest = str(error).splitlines()
            hint = (
                f" python -m refiners inspect {lora.path} --checkpoint {options.checkpoint} lists them" if rest else ""
            )
            raise SetupError(f"argument --lora: {first}{hint}") from error
    model.requires_grad_(False)


@torch.no_grad()
def _set_mask(model: StableDiffusion_1_Inpainting, options: Options) -> None:
    if options.init is None or options.mask is None:
        raise SetupError(f"{options.checkpoint} paints into a mask: give --init and --mask")
    height, width = options.size or (model.default_size, model.default_size)
    image, mask = (Image.open(path) for path in (options.init, options.mask))
    model.set_inpainting_conditions(
        image.convert("RGB").resize((width, height)), mask.convert("L").resize((width, height))
    )
