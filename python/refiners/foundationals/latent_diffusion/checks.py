"""What the calls of diffusion models ask of their arguments, told by the name of the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from PIL import Image
from torch import Tensor

from refiners.fluxion.adapters.lora.checks import check_scale as check_scale
from refiners.foundationals.latent_diffusion.warning import warn_user
from refiners.ops.transforms import is_autocast

T = TypeVar("T")


def as_integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """Give a whole number, of whatever type, that is in a range.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}")
    number = int(value)
    if number < least or (most is not None and number > most):
        expected = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {expected}, got {number}")
    return number


def as_number(name: str, value: object) -> float:
    """Give a finite number, of whatever type.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is infinite, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def as_size(size: object, multiple: int = 1) -> tuple[int, int]:
    """Give a height and a width in pixels, both at least 8.

    Raises:
        TypeError: If it is no pair of whole numbers.
        ValueError: If they are not two, too small, or no multiples of `multiple`.
    """
    given, kind = shown(size), f"two positive multiples of {multiple}" if multiple > 1 else "two whole numbers"
    wrong = f"size must be {kind} (height, width), got {given}"
    if isinstance(size, (str, bytes)) or not isinstance(size, Sequence):
        raise TypeError(wrong)
    sides = list(cast("Sequence[object]", size))
    if any(isinstance(side, bool) or not isinstance(side, Integral) for side in sides):
        raise TypeError(wrong)
    numbers = [int(cast(int, side)) for side in sides]
    if len(numbers) != 2 or any(side % multiple for side in numbers):
        raise ValueError(wrong)
    if min(numbers) < 8:
        raise ValueError(f"size must be at least (8, 8), got {given}")
    return numbers[0], numbers[1]


def as_texts(name: str, value: object) -> list[str]:
    """Give a list of texts, of one if it is one.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is none.
    """
    return _as_list(name, value, str, "a prompt", shown)


def as_images(name: str, value: object) -> list[Image.Image]:
    """Give a list of images, of one if it is one.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is none.
    """
    return _as_list(name, value, Image.Image, "a PIL image", _shown_image)


def _as_list(name: str, value: Any, kind: type[T], a_kind: str, show: Callable[[object], str]) -> list[T]:
    if isinstance(value, kind):
        return [value]
    expected = f"{name} must be {a_kind} or a list of at least one"
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{expected}, got {show(value)}")
    items = list(cast("Sequence[object]", value))
    if not items:
        raise ValueError(f"{expected}, got an empty list")
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{expected}, got a list with {show(item)}")
    return cast("list[T]", items)


def check_tensor(name: str, value: object, sizes: Sequence[int | str], weight: Tensor, any_dtype: bool = False) -> None:
    """Raise unless an argument is a tensor that a U-Net with this weight can take.

    Args:
        name: The argument.
        value: What was given.
        sizes: The sizes that it must have; a word stands for any.
        weight: A weight of the U-Net, on whose device the tensor must be, and in whose dtype but under autocast.
        any_dtype: Whether any dtype will do.

    Raises:
        TypeError: If it is no tensor, or of another dtype.
        ValueError: If its shape or its device is another one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {shown(value)}")
    if value.ndim != len(sizes) or any(isinstance(b, int) and a != b for a, b in zip(value.shape, sizes)):
        raise ValueError(f"{name} must be ({', '.join(map(str, sizes))}), got {tuple(value.shape)}")
    if value.device != weight.device:
        raise ValueError(f"{name} must be on {weight.device} like the U-Net, got {value.device}")
    if value.dtype != weight.dtype and not any_dtype and not is_autocast(weight):
        raise TypeError(f"{name} must be {weight.dtype} like the U-Net, got {value.dtype}")


def check_batch(x: object, clip_text_embedding: object, guided: bool, weight: Tensor) -> None:
    """Raise unless latents and encoded prompts fit each other, and the U-Net that has this weight.

    Raises:
        AssertionError: If with guidance the number of encoded prompts is odd.
        TypeError: If one of them is no tensor, or of another dtype.
        ValueError: If its shape or its device is another one.
    """
    check_tensor("x", x, ("batch", "channels", "height", "width"), weight)
    check_tensor("clip_text_embedding", clip_text_embedding, ("conditions", "tokens", "dim"), weight)
    images, prompts = cast(Tensor, x).shape[0], cast(Tensor, clip_text_embedding).shape[0]
    if guided and prompts % 2:
        raise AssertionError(f"invalid batch size for classifier-free guidance: expected an even one, got {prompts}")
    if prompts != images * (1 + guided):
        pairs = ", a negative and a positive one for each" if guided else ""
        raise ValueError(
            f"clip_text_embedding must have {images * (1 + guided)} items for {images} images{pairs}, got {prompts}"
        )


def check_scopes(scopes: Mapping[Any, Sequence[object]]) -> None:
    """Raise `TypeError` unless inclusions and exclusions of each network are lists of names of classes."""
    for part, lists in scopes.items():
        for kind, names in zip(("inclusions", "exclusions"), lists):
            is_list = isinstance(names, Collection) and not isinstance(names, str)
            if names is not None and not (is_list and all(isinstance(each, str) for each in cast("list[Any]", names))):
                raise TypeError(f"{part}_{kind} must be a list of names of classes, got {shown(cast(object, names))}")


def warn_of_unknown(part: str, asked: Collection[str], known: Collection[str]) -> None:
    """Warn of names of classes that leave nothing out and nothing in, since a network has no chain of them."""
    for name in sorted({*asked} - {*known}):
        close = get_close_matches(name, known, 1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        warn_user(f"no chain in the {part} is a {name!r}, as inclusions or exclusions have it{hint}")


def shown(value: object) -> str:
    """Describe what came instead: short values as they are, others by their type."""
    is_plain = value is None or type(value) in (bool, int, float, str, tuple, list)
    return text if is_plain and len(text := repr(value)) <= 60 else type(value).__name__


def _shown_image(value: object) -> str:
    hint = ": open it by PIL.Image.open" if isinstance(value, str) or hasattr(value, "__fspath__") else ""
    return f"{type(value).__name__}{hint}"
