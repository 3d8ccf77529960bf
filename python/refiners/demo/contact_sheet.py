"""The pictures of the demo: grids of digits, and one sheet that shows them all with captions."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate, pad

from refiners.fluxion.utils import tensor_to_image

_CELL = 60  # height and width of a digit as shown, in pixels
_MARGIN = 3  # around each digit
_GAP = 36  # around each panel
_CAPTION = 76  # height of the text above a grid
_PAPER, _INK, _FAINT = (250, 249, 246), (24, 26, 32), (112, 116, 126)


class Panel(NamedTuple):
    """A grid with the text above it: a title, a line of explanation, and a word for each column if there is one."""

    title: str
    subtitle: str
    grid: Image.Image
    columns: Sequence[str] = ()


def draw_grid(images: Float[Tensor, "batch 1 height width"], num_columns: int) -> Image.Image:
    """Draw images, from -1 to 1, row by row in a grid.

    Raises:
        ValueError: If the last row is not full.
    """
    if len(images) % num_columns:
        raise ValueError(f"images must fill rows of {num_columns}, got {len(images)}")
    shown = interpolate((images + 1) / 2, size=(_CELL, _CELL), mode="bicubic").clamp(0, 1)
    framed = pad(shown, (_MARGIN,) * 4, value=0.35)
    height, width = framed.shape[-2:]
    rows = framed.reshape(-1, num_columns, height, width).transpose(1, 2)  # row, line, column, dot
    return tensor_to_image(rows.reshape(1, 1, -1, num_columns * width))


def draw_contact_sheet(title: str, panels: Sequence[Panel], num_columns: int) -> Image.Image:
    """Draw panels of one size row by row under a title."""
    width, height = panels[0].grid.size
    num_rows = -(-len(panels) // num_columns)
    size = (
        _GAP + num_columns * (width + _GAP),
        2 * _GAP + num_rows * (_CAPTION + height + _GAP),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_INK, font=ImageFont.load_default(30), anchor="lm")
    for index, panel in enumerate(panels):
        row, column = divmod(index, num_columns)
        _draw_panel(sheet, panel, x=_GAP + column * (width + _GAP), y=2 * _GAP + row * (_CAPTION + height + _GAP))
    return sheet


def _draw_panel(sheet: Image.Image, panel: Panel, x: int, y: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((x, y + 12), panel.title, fill=_INK, font=ImageFont.load_default(22), anchor="lm")
    draw.text((x, y + 37), panel.subtitle, fill=_FAINT, font=ImageFont.load_default(15), anchor="lm")
    step = _CELL + 2 * _MARGIN
    for index, word in enumerate(panel.columns):
        center = (x + index * step + step // 2, y + 62)
        draw.text(center, word, fill=_INK, font=ImageFont.load_default(13), anchor="mm")
    sheet.paste(panel.grid, (x, y + _CAPTION))
