"""Train the model of the demo: `python -m refiners.demo.train` regenerates `digits.safetensors`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch

from refiners.demo.digits import Style, load_digits
from refiners.demo.errors import DemoError
from refiners.demo.progress import track
from refiners.demo.style import OUTLINED, attach_style, save_style, train_style
from refiners.demo.training import fit
from refiners.demo.unet import WEIGHTS, DigitsUNet, load_base
from refiners.fluxion.utils import manual_seed, save_to_safetensors
from refiners.options import MOST_SEED, OneLineParser, natural

_SLOWEST_AVERAGE = 0.998  # how much of the average of the weights stays at each step


def train_base(unet: DigitsUNet, num_steps: int, seed: int) -> Iterator[float]:
    """Train a model on the plain digits, yield the loss of each step, and leave the average of the weights in it.

    Args:
        unet: The model.
        num_steps: How many steps.
        seed: Where the random numbers of the training begin.
    """
    weights = list(unet.parameters())
    averages = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    losses = fit(unet, weights, *load_digits(), num_steps, learning_rate=2e-3, generator=generator)
    for step, loss in enumerate(losses):
        decay = min(_SLOWEST_AVERAGE, (step + 1) / (step + 10))
        for average, weight in zip(averages, weights):
            average.lerp_(weight.detach(), 1 - decay)
        yield loss
    with torch.no_grad():
        for average, weight in zip(averages, weights):
            weight.copy_(average)


def main(argv: Sequence[str]) -> int:
    """Train the base model of the demo from scratch, or a LoRA of it; save it over what is shipped."""
    options = _parse(argv)
    torch.set_num_threads(options.threads)
    manual_seed(options.seed)
    losses: list[float] = []
    try:
        steps, save, path = _prepare(options)
        for loss in track(steps, options.steps, f"training: {options.style}"):
            losses.append(loss)
            if len(losses) % 500 == 0:
                print(f"step {len(losses)}: mean loss {sum(losses[-500:]) / 500:.4f}", flush=True)
    except DemoError as error:
        print(f"python -m refiners.demo.train: error: {error}", file=sys.stderr)
        return 2
    save()
    print(f"saved {path}")
    return 0


def _prepare(options: argparse.Namespace) -> tuple[Iterator[float], Callable[[], None], Path]:
    """Return the steps of the training, and a function that saves what came out of them, and where."""
    if options.style == "plain":
        unet = DigitsUNet()
        path = options.out or WEIGHTS
        return train_base(unet, options.steps, options.seed), lambda: save_to_safetensors(path, unet.state_dict()), path
    generator = torch.Generator().manual_seed(options.seed)
    unet = load_base()
    loras = attach_style(unet, options.style)
    path = options.out or OUTLINED.with_name(f"{options.style}.safetensors")
    return train_style(unet, loras, options.style, options.steps, generator), lambda: save_style(loras, path), path


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m refiners.demo.train", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--style", choices=get_args(Style), default="plain", help="plain (default) is the base model")
    parser.add_argument("--out", type=Path, help="where to save the weights")
    parser.add_argument("--steps", type=natural(1), help="training steps (default: 3000; for a LoRA 800)")
    parser.add_argument(
        "--seed", type=natural(0, MOST_SEED), default=0, help="where all random numbers begin (default: 0)"
    )
    parser.add_argument("--threads", type=natural(1), default=1, help="how many threads torch uses (default: 1)")
    options = parser.parse_args(argv)
    options.steps = options.steps or (3000 if options.style == "plain" else 800)
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
