"""The images of the demo: the handwritten digits of scikit-learn, plain and in two other styles."""

from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, max_pool2d

from refiners.demo.errors import DemoError

Images = Float[Tensor, "batch 1 height width"]
Style = Literal["plain", "slanted", "outlined"]

SIZE = 16  # height and width of an image, in pixels
_DRAWING_SIZE = 64  # the styles are drawn at this size, which is then reduced


def load_digits(style: Style = "plain") -> tuple[Float[Tensor, "1797 1 16 16"], Int[Tensor, "1797"]]:
    """Load the 1,797 handwritten digits in a style.

    Args:
        style: `plain` (white strokes on black), `slanted` (leaning to the right, black on white) or `outlined`.

    Returns:
        The images, from -1 (black) to 1 (white), and what they show, from 0 to 9.

    Raises:
        ValueError: If there is no such style.
        DemoError: If scikit-learn, which brings the images, is not installed.
    """
    if style not in get_args(Style):
        raise ValueError(f"style must be one of {', '.join(get_args(Style))}, got {style!r}")
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise DemoError.missing("scikit-learn") from error
    pixels, labels = cast("tuple[Any, Any]", datasets.load_digits(return_X_y=True))
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return draw(images, style), torch.tensor(labels, dtype=torch.int64)


def draw(images: Images, style: Style) -> Float[Tensor, "batch 1 16 16"]:
    """Redraw small images, from 0 to 1, with sharp strokes in a style.

    Args:
        images: The images.
        style: See `load_digits`.

    Returns:
        The drawings, from -1 to 1.
    """
    drawing = interpolate(images, size=(_DRAWING_SIZE, _DRAWING_SIZE), mode="bicubic")
    drawing = torch.sigmoid(14 * (drawing - 0.5))  # the strokes, without the blur of enlarging
    drawing = _warp(drawing, slant=0.45 if style == "slanted" else 0.0)
    if style == "slanted":
        drawing = 1 - drawing
    if style == "outlined":
        drawing = max_pool2d(drawing, kernel_size=9, stride=1, padding=4) - drawing
    return 2 * interpolate(drawing, size=(SIZE, SIZE), mode="area") - 1


def _warp(images: Images, slant: float) -> Images:
    """Shrink images by a margin, and lean them to the right by a part of their height."""
    theta = torch.tensor([[1.15, slant, 0.0], [0.0, 1.15, 0.0]]).expand(len(images), 2, 3)
    return grid_sample(images, affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)
