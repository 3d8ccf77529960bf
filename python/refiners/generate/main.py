"""The command `python -m refiners generate`."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from refiners.generate.options import Options, parse_options


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
    try:
        for path in generate(options):
            print(path)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        print(f"refiners generate: {error}", file=sys.stderr)
        return 2
    return 0


def generate(options: Options) -> list[Path]:
    """Load the checkpoint, generate, and write the pictures; give their paths."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from refiners.conversion.pretrained import load_pretrained
    from refiners.fluxion.utils import str_to_dtype
    from refiners.foundationals.latent_diffusion import LatentDiffusionModel, StableDiffusion_1_Inpainting
    from refiners.generate.metadata import describe
    from refiners.generate.solvers import make_solver

    device = find_device(options.device)
    dtype = str_to_dtype(options.dtype or ("float32" if device.type == "cpu" else "float16"))
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
