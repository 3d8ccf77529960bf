"""`lora_linear` with matrices in float32 beside a layer in 16 bits: the master weights of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, dtype as DType

from refiners.ops.library import LIBRARY
from refiners.ops.lora_linear import lora_linear
from refiners.ops.lora_linear_backward import any_requires_grad, backward, save_for_backward
from refiners.ops.lora_linear_checks import check_lora_linear
from refiners.ops.transforms import is_autocast, is_transformed

_SHORT_DTYPES = (torch.bfloat16, torch.float16)
_ARGUMENTS = "(Tensor x, Tensor weight, Tensor? bias, Tensor[] downs, Tensor[] ups, Tensor scale)"
LIBRARY.define(f"_lora_linear_masters{_ARGUMENTS} -> Tensor")
_OPERATOR = torch.ops.refiners._lora_linear_masters.default


def are_master_weights(down: Tensor, up: Tensor, dtype: DType) -> bool:
    """Whether the matrices of an update are in float32, for a layer in 16 bits."""
    return dtype in _SHORT_DTYPES and down.dtype == up.dtype == torch.float32


def lora_linear_masters(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, "out_features"] | None,
    downs: Sequence[Float[Tensor, "rank in_features"]],
    ups: Sequence[Float[Tensor, "out_features rank"]],
    scale: Float[Tensor, "adapters *lead"],
) -> Float[Tensor, "*batch out_features"]:
    """Compute `lora_linear` with the matrices rounded to the dtype of `x`, and their gradients in their own.

    See [[arXiv:1710.03740] Mixed Precision Training](https://arxiv.org/abs/1710.03740), section 3.1. Backward, the
    gradients of the matrices are products in float32 of `x` and of the matrices themselves, unlike those of a mere
    cast, which are rounded to 16 bits on their way. Saved are the arguments, as by `lora_linear`: no copy of `x`.

    Args:
        x: The input, in 16 bits.
        weight: The weight of the layer, as the following; see `lora_linear`.
        bias: See there.
        downs: See there; each pair of matrices may be in float32, or in the dtype of `x`.
        ups: See there.
        scale: See there.

    Returns:
        A new tensor with the dtype and device of `x`.

    Raises:
        ValueError: If shapes, lengths or devices disagree, as by `lora_linear`.
        TypeError: If a dtype is another than these.
    """
    short_downs, short_ups = _rounded(downs, x.dtype), _rounded(ups, x.dtype)
    is_recorded = torch.is_grad_enabled() and any_requires_grad(x, weight, bias, downs, ups, scale)
    if not is_recorded or is_autocast(x) or is_transformed():
        return lora_linear(x, weight, bias, short_downs, short_ups, scale)
    check_lora_linear(x, weight, bias, short_downs, short_ups, scale, None)
    return _OPERATOR(x, weight, bias, downs, ups, scale)


def _rounded(matrices: Sequence[Tensor], dtype: DType) -> list[Tensor]:
    return [matrix.to(dtype) if matrix.dtype == torch.float32 else matrix for matrix in matrices]


@torch.library.impl(LIBRARY, "_lora_linear_masters", "CompositeExplicitAutograd")
def _compute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: Tensor,
) -> Tensor:
    return torch.ops.refiners.lora_linear.default(
        x, weight, bias, _rounded(downs, x.dtype), _rounded(ups, x.dtype), scale
    )


@torch.library.register_fake("refiners::_lora_linear_masters", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


torch.library.register_autograd(
    "refiners::_lora_linear_masters", backward, setup_context=save_for_backward, lib=LIBRARY
)
