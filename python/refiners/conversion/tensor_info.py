"""What is known of a tensor before it is read."""

from dataclasses import dataclass

from torch import Size, dtype as DType


@dataclass(frozen=True)
class TensorInfo:
    """The shape and dtype of a tensor in a file."""

    shape: Size
    dtype: DType
