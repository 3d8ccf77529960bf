"""The command `python -m refiners generate`."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refiners.generate.options import Options, parse_options
from refiners.options import complain

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

    from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
    from refiners.generate.setup import Setup


def main(argv: Sequence[str]) -> int:
    """Generate images.

    Args:
        argv: The options; `--help` lists them.

    Returns:
        0; 2 if something that the user can mend stopped it, after one line that says what.

    Raises:
        SystemExit: With code 2, after a one-line error, if an option is wrong; with code 0 after the help.
    """
    options = parse_options(argv)
    from refiners.generate.setup import SetupError, set_up

    try:
        setup = set_up(options)
    except SetupError as error:
        return complain("generate", str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        return complain("generate", "there is not enough memory for the model: see --dtype, --device")
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    try:
        paths = save(generate(setup, options, seed), setup.model, options, seed)
    except OSError as error:
        return complain("generate", f"argument --out: {error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        height, width = setup.size
        pictures = f"{options.count} of {width}x{height} pixels"
        return complain("generate", f"there is not enough memory for {pictures}: see --size, --tiled, --count, --dtype")
    for path in paths:
        print(path)
    return 0


def _is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether this or what caused it is that: chains wrap errors, and the CPU's is no class of its own."""
    while error is not None:
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or "allocate memory" in str(error)
        ):
            return True
        error = error.__cause__
    return False


def generate(setup: Setup, options: Options, seed: int) -> list[Image]:
    """Take all steps, and draw a bar of how many are done."""
    from tqdm import tqdm

    model = setup.model

    start = time.perf_counter()
    bar = tqdm(desc=f"seed {seed}", unit="step", disable=None, file=sys.stderr)  # None: not if nobody looks

    def on_step(step: int, x: Tensor) -> None:
        bar.total = len(model.steps)
        bar.update()
        if options.preview and (step + 1) % options.preview == 0 and step != model.steps[-1]:
            write_png(model.lda.latents_to_images(x[:1])[0], options.out.with_suffix(".preview.png"))

    with bar:
        images = model.generate(
            options.prompt,
            options.negative,
            size=setup.size,
            num_steps=options.steps,
            condition_scale=options.scale,
            seed=[seed + i for i in range(options.count)],
            init_image=setup.init_image,
            strength=1.0 if options.strength is None else options.strength,
            on_step=on_step,
        )
    print(f"{len(images)} in {time.perf_counter() - start:.1f} s, seed {seed}", file=sys.stderr)
    return images


def save(images: list[Image], model: LatentDiffusionModel, options: Options, seed: int) -> list[Path]:
    """Write the images, the second and following ones with a number after the name."""
    from refiners.generate.metadata import describe

    paths: list[Path] = []
    for i, image in enumerate(images):
        path = options.out if i == 0 else options.out.with_stem(f"{options.out.stem}-{i + 1}")
        write_png(image, path, describe(options, model, seed + i, (image.height, image.width)))
        paths.append(path)
    return paths


def write_png(image: Image, path: Path, info: PngInfo | None = None) -> None:
    """Write an image, whole or not at all: what has the name now is replaced at the end.

    Raises:
        OSError: If it cannot be written.
    """
    path = path.resolve()  # a link keeps pointing to what it points to
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(temporary, format="PNG", pnginfo=info)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
