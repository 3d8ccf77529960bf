"""Sums of tensors with numbers as factors, and the noise that goes into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor, dtype as DType

Generators: TypeAlias = Generator | Sequence[Generator] | None
"""Where random numbers come from: the default of the device, one generator, or one for each sample of the batch."""


def wide(*tensors: Tensor) -> DType:
    """Give the dtype to compute in: float64 if one of the tensors has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def combine(*terms: tuple[float, Tensor], dtype: DType | None = None) -> Tensor:
    """Sum tensors times numbers: `a·x + b·y + ...`, rounded once.

    It is one call of torch per term, plus two for 16 bits. Terms with the factor 0 are not looked at.

    Args:
        terms: The factors and the tensors, of one shape.
        dtype: The dtype of the result (default: that of the first tensor).

    Returns:
        A new tensor.
    """
    first = terms[0][1]
    terms = tuple(term for term in terms if term[0] != 0)
    dtype = dtype or first.dtype
    if not terms:
        return torch.zeros_like(first, dtype=dtype)
    factor, tensor = terms[0]
    total = tensor.to(wide(*(tensor for _, tensor in terms)))
    if factor != 1:
        total = total * factor
    for factor, term in terms[1:]:
        total = torch.add(total, term, alpha=factor)
    total = total.to(dtype)
    return total.clone() if total is tensor else total


def check_generator(generator: Generators, x: Tensor) -> None:
    """Raise ValueError unless there is a generator for each sample, and TypeError if it is something else."""
    if generator is None or isinstance(generator, Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(item, Generator) for item in generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    if len(generator) != x.shape[0]:
        raise ValueError(f"generator must have one item for each of the {x.shape[0]} samples, got {len(generator)}")


def noise_like(x: Float[Tensor, "batch *shape"], generator: Generators = None) -> Float[Tensor, "batch *shape"]:
    """Draw normal noise in the shape, the dtype and on the device of a tensor.

    With one generator for each sample, each sample gets what it would get alone. A generator of another device draws
    there, and its numbers are moved: with generators of the CPU every device gets the same noise.

    Args:
        x: The tensor.
        generator: Where the random numbers come from.
    """
    if generator is None or isinstance(generator, Generator):
        return _draw(x, x.shape, generator)
    return torch.cat([_draw(x, torch.Size([1, *x.shape[1:]]), item) for item in generator])


def _draw(like: Tensor, shape: torch.Size, generator: Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
