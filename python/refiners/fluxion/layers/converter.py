"""Conversion to the device and dtype of the layers around."""

from __future__ import annotations

from torch import Tensor

from refiners.fluxion.layers.module import ContextModule


class Converter(ContextModule):
    """Move and cast tensors to the device and dtype of the parent, that is of its first layer with a weight.

    Args:
        set_device: Whether to change the device.
        set_dtype: Whether to change the dtype.

    Receives:
        inputs (Tensor): Any number of tensors.

    Returns:
        tuple[Tensor, ...]: As many tensors; those that need no change themselves.

    Raises:
        AssertionError: When called, if there is no parent, or no layer with a weight in it.
    """

    def __init__(self, set_device: bool = True, set_dtype: bool = True) -> None:
        super().__init__()
        self.set_device = set_device
        self.set_dtype = set_dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        parent = self.ensure_parent
        device = parent.device if self.set_device else None
        dtype = parent.dtype if self.set_dtype else None
        if self.set_device and device is None:
            raise AssertionError("parent has no device")
        if self.set_dtype and dtype is None:
            raise AssertionError("parent has no dtype")
        return tuple([x.to(device=device, dtype=dtype) for x in inputs])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(set_device={self.set_device}, set_dtype={self.set_dtype})"
