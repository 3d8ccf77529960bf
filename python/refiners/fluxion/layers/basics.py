"""Leaves without weights that select, reshape or scale, and the one that is nothing but a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Num, Shaped
from torch import Size, Tensor, device as Device, dtype as DType

from refiners.fluxion.layers.module import Module, WeightedModule


class Identity(Module):
    """Return the argument itself."""

    def forward(self, x: Any) -> Any:
        return x


class GetArg(Module):
    """Return one of the arguments itself.

    Args:
        index: Which one, counted from the end if negative.

    Raises:
        IndexError: When called, if there are not as many arguments.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, *args: Any) -> Any:
        return args[self.index]


class Flatten(Module):
    """Merge consecutive dimensions into one, as `torch.flatten`.

    Args:
        start_dim: The first dimension to merge: 0, that is the batch, unless said otherwise.
        end_dim: The last dimension to merge.
    """

    def __init__(self, start_dim: int = 0, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*new_shape"]:
        return torch.flatten(x, start_dim=self.start_dim, end_dim=self.end_dim)


class Unflatten(Module):
    """Split a dimension into several, as `torch.unflatten`.

    Args:
        dim: The dimension to split.

    Receives:
        x (Shaped[Tensor, "*shape"]): The input.
        sizes (Size): The sizes of the new dimensions; one of them may be -1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Shaped[Tensor, "*shape"], sizes: Size) -> Shaped[Tensor, "*new_shape"]:
        return torch.unflatten(x, self.dim, sizes)


class Reshape(Module):
    """Reshape all dimensions but the first, which is kept.

    Args:
        shape: The new shape, without the batch dimension; one size may be -1.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
        return x.reshape(x.shape[0], *self.shape)


class Transpose(Module):
    """Exchange two dimensions, as `torch.transpose`.

    Args:
        dim0: The one.
        dim1: The other.
    """

    def __init__(self, dim0: int, dim1: int) -> None:
        super().__init__()
        self.dim0 = dim0
        self.dim1 = dim1

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*new_shape"]:
        return torch.transpose(x, self.dim0, self.dim1)


class Permute(Module):
    """Reorder the dimensions, as `torch.permute`.

    Args:
        dims: For each dimension of the result, the dimension of the input that it is.
    """

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*new_shape"]:
        return torch.permute(x, self.dims)


class Slicing(Module):
    """Take a slice of one dimension, as `x[:, start:end:step]` does: bounds are clamped, negative ones wrap.

    The result is a view of the input, also when it is empty.

    Args:
        dim: The dimension to slice.
        start: The first index.
        end: The index to stop before. Both `None` and 0 mean the end of the dimension.
        step: The distance between indices.

    Raises:
        ValueError: If the step is not positive.
    """

    def __init__(self, dim: int = 0, start: int = 0, end: int | None = None, step: int = 1) -> None:
        super().__init__()
        if step < 1:
            raise ValueError(f"step must be at least 1, got {step}")
        self.dim = dim
        self.start = start
        self.end = end
        self.step = step

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*new_shape"]:
        index = [slice(None)] * x.ndim
        index[self.dim] = slice(self.start, self.end or None, self.step)
        return x[tuple(index)]


class Squeeze(Module):
    """Remove a dimension of size 1, as `torch.squeeze`.

    Args:
        dim: The dimension; it stays if its size is not 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*new_shape"]:
        return torch.squeeze(x, self.dim)


class Unsqueeze(Module):
    """Insert a dimension of size 1, as `torch.unsqueeze`.

    Args:
        dim: Where it is in the result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*new_shape"]:
        return torch.unsqueeze(x, self.dim)


class Sin(Module):
    """Return the sine of each element, in radians."""

    def forward(self, x: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
        return torch.sin(x)


class Cos(Module):
    """Return the cosine of each element, in radians."""

    def forward(self, x: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
        return torch.cos(x)


class Multiply(Module):
    """Compute `scale * x + bias`.

    Both may be changed at any time. A factor of 1 and a bias of 0 cost nothing; with both, a floating point argument is
    returned itself, as by `Identity`. Integers are always promoted, as the formula promotes them.

    Args:
        scale: The factor; a tensor has one for each item of the first dimensions of `x`: [batch] or [batch, tokens]. A
            function makes it of `x`.
        bias: What is added.
    """

    scale: float | Tensor | Callable[[Tensor], float | Tensor]
    bias: float

    def __init__(self, scale: float | Tensor | Callable[[Tensor], float | Tensor] = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.bias = bias

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
        scale = self.scale
        if callable(scale):
            scale = scale(x)
        if isinstance(scale, Tensor):
            scale = scale.to(x.device, x.dtype if x.is_floating_point() else None)
            y = x * scale.reshape((*scale.shape, *[1] * (x.ndim - scale.ndim)))
        elif x.is_floating_point() or x.is_complex():
            y = x if scale == 1 else scale * x
        else:
            return scale * x + self.bias
        return y if self.bias == 0 else y + self.bias


class Parameter(WeightedModule):
    """Return a weight, once for each item of the batch.

    Args:
        dims: The shape of the weight. It begins as standard normal noise.
        requires_grad: Whether it can be trained.
        device: Where to create it.
        dtype: Its dtype.

    Receives:
        x (Shaped[Tensor, "batch ..."]): Anything of the right batch size.

    Returns:
        Float[Tensor, "batch *dims"]: The weight, expanded: a view without memory of its own.
    """

    def __init__(
        self,
        *dims: int,
        requires_grad: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.weight = torch.nn.Parameter(torch.randn(*dims, device=device, dtype=dtype), requires_grad=requires_grad)

    @property
    def requires_grad(self) -> bool:
        """Whether the weight can be trained."""
        return self.weight.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.weight.requires_grad = value

    def forward(self, x: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
        return self.weight.expand(x.shape[0], *self.dims)
