"""The command `python -m refiners generate`."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refiners.generate.options import Options, parse_options

if TYPE_CHECKING:
    from PIL.Image import Image
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
        print(f"refiners generate: {error}", file=sys.stderr)
        return 2
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    for path in save(generate(setup, options, seed), setup.model, options, seed):
        print(path)
    return 0


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
            model.lda.latents_to_images(x[:1])[0].save(options.out.with_suffix(".preview.png"))

    with bar:
        images = model.generate(
            options.prompt,
            options.negative,
            size=setup.size,
            num_steps=options.steps,
            condition_scale=options.scale,
            seed=[seed + i for i in range(options.count)],
            init_image=setup.init_image,
            strength=options.strength,
            on_step=on_step,
        )
    print(f"{len(images)} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return images


def save(images: list[Image], model: LatentDiffusionModel, options: Options, seed: int) -> list[Path]:
    """Write the images, the second and following ones with a number after the name."""
    from refiners.generate.metadata import default_scale, describe

    paths: list[Path] = []
    for i, image in enumerate(images):
        path = options.out if i == 0 else options.out.with_stem(f"{options.out.stem}-{i + 1}")
        scale = options.scale if options.scale is not None else default_scale(model)
        info = describe(options, seed + i, (image.height, image.width), type(model.solver).__name__, scale)
        image.save(path, pnginfo=info)
        paths.append(path)
    return paths
