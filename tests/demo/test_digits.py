"""The images of the demo are the real digits, in three styles that differ to the eye."""

import sys

import pytest
import torch

from refiners.demo.digits import SIZE, Style, draw, load_digits
from refiners.demo.errors import DemoError


@pytest.mark.parametrize("style", ["plain", "slanted", "outlined"])
def test_every_style_has_all_digits_in_range(style: Style) -> None:
    images, labels = load_digits(style)
    assert images.shape == (1797, 1, SIZE, SIZE) and images.dtype == torch.float32
    assert -1 <= images.min() < -0.9 and 0.9 < images.max() <= 1
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_slanted_digits_are_black_on_white_and_lean_to_the_right() -> None:
    bar = torch.zeros(1, 1, 8, 8)
    bar[..., 3:5] = 1
    assert draw(bar, "plain").mean() < 0 < draw(bar, "slanted").mean()
    ink = 1 - draw(bar, "slanted")[0, 0]
    columns = (ink * torch.arange(SIZE)).sum(dim=1) / ink.sum(dim=1)
    assert columns[4] > columns[11] + 2  # the upper part is further right


def test_outlined_digits_are_hollow() -> None:
    block = torch.zeros(1, 1, 8, 8)
    block[..., 2:6, 2:6] = 1
    plain, outlined = draw(block, "plain")[0, 0], draw(block, "outlined")[0, 0]
    assert plain[8, 8] > 0.9 and outlined[8, 8] < -0.9
    assert (outlined[8] > -0.1).sum() == 4 and outlined[0, 0] < -0.9  # two strokes, shared by two dots each


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="style must be one of plain, slanted, outlined, got 'italic'"):
        load_digits("italic")  # type: ignore[arg-type]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DemoError, match=r"scikit-learn is not installed: .*pip install 'refiners\[demo\]'"):
        load_digits()
