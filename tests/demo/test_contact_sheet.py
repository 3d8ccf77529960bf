"""Pictures: each image is where it belongs."""

import pytest
import torch
from PIL import Image

from refiners.demo.contact_sheet import Panel, draw_contact_sheet, draw_grid


def test_images_fill_the_grid_row_by_row() -> None:
    levels = torch.tensor([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0])
    grid = draw_grid(levels.reshape(6, 1, 1, 1).expand(6, 1, 16, 16), num_columns=3)
    width, height = grid.size
    assert grid.mode == "L" and (width % 3, height % 2) == (0, 0) and width // 3 == height // 2
    centers = [grid.getpixel((width * (2 * x + 1) // 6, height * (2 * y + 1) // 4)) for y in range(2) for x in range(3)]
    expected = [(level + 1) / 2 * 255 for level in levels.tolist()]
    assert all(abs(center - level) < 2 for center, level in zip(centers, expected))


def test_a_grid_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="images must fill rows of 3, got 4"):
        draw_grid(torch.zeros(4, 1, 16, 16), num_columns=3)


def test_the_sheet_holds_every_grid_once() -> None:
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    panels = [Panel("title", "more", Image.new("RGB", (50, 40), color), ("a",)) for color in colors]
    sheet = draw_contact_sheet("all", panels, num_columns=2)
    counts = {color: count for count, color in sheet.getcolors(maxcolors=100_000)}
    assert [counts[color] for color in colors] == [50 * 40] * 3
    assert counts[(24, 26, 32)] > 20  # ink of the titles
