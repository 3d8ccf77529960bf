"""The model of `python -m refiners generate`, ready to run."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from PIL import ImageOps, UnidentifiedImageError
from torch import device as Device

from refiners.conversion.pretrained import load_pretrained
from refiners.conversion.snapshot import download_snapshot
from refiners.fluxion.utils import str_to_dtype
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.requests import size_of_image
from refiners.foundationals.latent_diffusion.solvers import LCMSolver
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import StableDiffusion_1_Inpainting
from refiners.generate.options import Options
from refiners.generate.solvers import make_solver, name_of
from refiners.generate.tiled import use_tiles
from refiners.options import fold


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
    image, mask = read_picture("--init", options.init), read_picture("--mask", options.mask)
    with explained("--checkpoint"):
        checkpoint = download_snapshot(str(options.checkpoint)) if options.download else Path(options.checkpoint)
    variant = "" if options.variant is None else f" --variant {options.variant}"
    with explained("--checkpoint", hint=f"python -m refiners inspect {checkpoint}{variant} says more"):
        model: LatentDiffusionModel = load_pretrained(
            LatentDiffusionModel, checkpoint, device=device, dtype=dtype, variant=options.variant
        )
    with explained("--solver" if options.prediction is None else "--prediction"):
        set_up_solver(model, options)
    with explained("--steps"):
        check_steps(model, options.steps)
        model.set_inference_steps(options.steps)
    with explained("--lora"):
        add_loras(model, options)
    if options.scale == 1:
        model.classifier_free_guidance = False  # the negative prompt would be computed for nothing
    if options.tiled:
        use_tiles(model.lda)
    size = options.size or (size_of_image(image) if image else (model.default_size, model.default_size))
    if isinstance(model, StableDiffusion_1_Inpainting):
        if image is None or mask is None:
            raise SetupError(f"argument --checkpoint: {options.checkpoint} paints into a mask: give --init and --mask")
        width_and_height = size[1], size[0]
        model.set_inpainting_conditions(
            image.convert("RGB").resize(width_and_height), mask.convert("L").resize(width_and_height)
        )
        return Setup(model, size, None)
    if mask is not None:
        raise SetupError(f"argument --mask: {options.checkpoint} is no checkpoint that paints into a mask")
    return Setup(model, size, None if image is None else image.convert("RGB"))


@contextmanager
def explained(option: str, hint: str = "") -> Generator[None, None, None]:
    """Take errors for mistakes in what an option was given, and tell them in one line, with a hint to the rest."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError, AssertionError, ImportError) as error:
        message = str(error).removesuffix(": give one")  # a solver, which only a program can give
        raise SetupError(f"argument {option}: {fold(message, hint)}") from error


def read_picture(option: str, path: Path | None) -> PIL.Image.Image | None:
    """Read a picture as it is to be seen; cameras note how they were held.

    Raises:
        SetupError: If it is none, or is damaged.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return ImageOps.exif_transpose(PIL.Image.open(file))  # a copy, read to its end
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is not known" if unknown else fold(str(error))
        raise SetupError(f"argument {option}: cannot read {str(path)!r} as a picture: {reason}") from error


def set_up_solver(model: LatentDiffusionModel, options: Options) -> None:
    """Give a model the solver that was asked for, or its own one with what was asked for."""
    if options.solver is not None or options.trailing or options.prediction is not None:
        name = options.solver or name_of(model.solver)
        solver = make_solver(name, model.solver, options.trailing, options.prediction)
        model.solver = solver.to(device=model.device, dtype=model.dtype)


def check_steps(model: LatentDiffusionModel, steps: int) -> None:
    """Raise `ValueError` if the model was distilled from fewer steps."""
    if isinstance(model.solver, LCMSolver) and steps > model.solver.num_orig_steps:
        raise ValueError(f"the solver lcm takes at most {model.solver.num_orig_steps} steps, got {steps}")


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
    """Attach the LoRAs, named after their files; with `--partial` what fits of them, with a warning of the rest.

    Raises:
        SetupError: If something in a file cannot be attached; with `--partial`, if nothing can.
    """
    manager = SDLoraManager(model)
    for number, lora in enumerate(options.lora, start=1):
        stem = lora.path.stem
        name = f"{stem} ({number})" if stem in manager.names else stem
        hint = f"python -m refiners inspect {lora.path} --checkpoint {options.checkpoint} lists them"
        try:
            plan = manager.load(name, lora.path, lora.scale, partial=options.partial)
        except (ValueError, AssertionError) as error:
            message = str(error) if str(lora.path) in str(error).splitlines()[0] else f"{lora.path}: {error}"
            rest = ", --partial attaches the rest" if "(partial=True" in message else ""
            raise SetupError(f"argument --lora: {fold(message, hint + rest)}") from error
        if not plan.is_whole:
            unfit = len(plan.updates) - len(plan.of_status("fits", "by order", "left out"))
            over = f", {len(plan.left_over)} keys are left over" if plan.left_over else ""
            text = f"{lora.path}: {unfit} of {len(plan.updates)} updates are left out{over}; {hint}"
            print(f"python -m refiners generate: warning: {text}", file=sys.stderr)
    model.requires_grad_(False)
