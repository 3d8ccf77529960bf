"""Warnings point at the line outside of the library that the call came from."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.warning import warn_user


def test_the_line_is_that_of_the_user() -> None:
    with pytest.warns(UserWarning, match="from here") as caught:
        warn_user("from here")
    assert caught[0].filename == __file__


def test_lines_of_the_library_and_of_torch_are_passed_over() -> None:
    layer = fl.Chain(fl.Lambda(torch.no_grad()(partial(warn_user, "from within"))))
    with pytest.warns(UserWarning, match="from within") as caught:
        layer()
    assert caught[0].filename == __file__


def test_the_category_is_given() -> None:
    with pytest.warns(RuntimeWarning, match="no numbers"):
        warn_user("no numbers", RuntimeWarning)
