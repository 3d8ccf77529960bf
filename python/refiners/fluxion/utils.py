"""Seeds, images, files and texts of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL  # PIL.Image itself is imported when it is needed: whoever has an image has imported it
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Size, Tensor, device as Device, dtype as DType

if TYPE_CHECKING:
    import PIL.Image

_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}  # of the modes of images that are supported

_DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "complex64": torch.complex64,
    "cfloat": torch.complex64,
    "complex128": torch.complex128,
    "cdouble": torch.complex128,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "short": torch.int16,
    "int32": torch.int32,
    "int": torch.int32,
    "int64": torch.int64,
    "long": torch.int64,
    "bool": torch.bool,
}


def norm(x: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the Frobenius norm of a tensor, the root of the sum of its squares."""
    return torch.norm(x)  # type: ignore[no-untyped-call]


def manual_seed(seed: int) -> None:
    """Seed the random numbers of torch, on all devices."""
    torch.manual_seed(seed)


no_grad = torch.no_grad
"""Record no gradients: `with no_grad():`, or a decorator, `@no_grad()` or `@no_grad`.

The class itself and not a subclass, because `torch.compile` traces only the former.
"""


def pad(
    x: Shaped[Tensor, "*shape"], pad: Iterable[int], value: float = 0.0, mode: str = "constant"
) -> Shaped[Tensor, "*new_shape"]:
    """Pad a tensor, as `torch.nn.functional.pad`.

    Args:
        x: The tensor.
        pad: The numbers of elements to add before and after, for the last dimension, then the last but one, and so on.
        value: What to add, in constant mode.
        mode: `"constant"`, `"reflect"`, `"replicate"` or `"circular"`.
    """
    return F.pad(x, tuple(pad), value=value, mode=mode)


def interpolate(
    x: Float[Tensor, "batch channels *in_size"], size: Size, mode: str = "nearest", antialias: bool = False
) -> Float[Tensor, "batch channels *size"]:
    """Resize a tensor, as `torch.nn.functional.interpolate`.

    Args:
        x: The tensor.
        size: The new size, without batch and channels.
        mode: The algorithm: `"nearest"`, `"bilinear"`, `"bicubic"`, `"area"`, ...
        antialias: Whether to smooth when reducing, with `"bilinear"` and `"bicubic"`.
    """
    return F.interpolate(x, size=cast(Any, size), mode=mode, antialias=antialias)


def normalize(
    tensor: Float[Tensor, "*batch channels height width"], mean: list[float], std: list[float]
) -> Float[Tensor, "*batch channels height width"]:
    """Compute `(tensor - mean) / std`, channel by channel.

    Args:
        tensor: The images.
        mean: The mean of each channel.
        std: The standard deviation of each channel.

    Raises:
        AssertionError: If the tensor is not floating point, or has less than three dimensions.
        ValueError: If a standard deviation is zero in the dtype of the tensor.
    """
    if not tensor.is_floating_point():
        raise AssertionError(f"tensor must be floating point, got {tensor.dtype}")
    if tensor.ndim < 3:
        raise AssertionError(f"tensor must have the shape (..., channels, height, width), got {tuple(tensor.shape)}")
    means, stds = (torch.tensor(values, device="cpu", dtype=tensor.dtype).view(-1, 1, 1) for values in (mean, std))
    if (stds == 0).any():
        raise ValueError(f"std must not be zero in {tensor.dtype}, got {std}")
    return (tensor - means.to(tensor.device)).div_(stds.to(tensor.device))


def gaussian_blur(
    tensor: Float[Tensor, "*batch channels height width"],
    kernel_size: int | tuple[int, int],
    sigma: float | tuple[float, float] | None = None,
) -> Float[Tensor, "*batch channels height width"]:
    """Blur images with a Gaussian; the border is reflected.

    Bitwise the same as torchvision's function of this name: hence one convolution with a kernel of two dimensions, and
    everything in the dtype of the tensor.

    Args:
        tensor: One image, or a batch of them.
        kernel_size: The odd size of the kernel, or its width and height, in pixels.
        sigma: The standard deviation, or that along x and that along y, in pixels
            (default: `0.15 * kernel_size + 0.35`).

    Raises:
        AssertionError: If the tensor is not floating point, is not 3-D or 4-D, or if `sigma` is an integer.
        ValueError: If the size of the kernel is not odd, or `sigma` is not positive.
    """
    if not tensor.is_floating_point():
        raise AssertionError(f"tensor must be floating point, got {tensor.dtype}")
    if tensor.ndim not in (3, 4):
        raise AssertionError(
            f"tensor must have the shape ([batch,] channels, height, width), got {tuple(tensor.shape)}"
        )
    if sigma is not None and not isinstance(sigma, (float, tuple)):
        raise AssertionError(f"sigma must be a float or a tuple of two, got {sigma!r}")

    kernel_x, kernel_y = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if sigma is None:
        sigma = (0.15 * kernel_x + 0.35, 0.15 * kernel_y + 0.35)
    sigma_x, sigma_y = (sigma, sigma) if isinstance(sigma, float) else sigma

    weights_x = _gaussian_kernel(kernel_x, sigma_x, tensor)
    weights_y = _gaussian_kernel(kernel_y, sigma_y, tensor)
    channels = tensor.shape[-3]
    kernel = torch.mm(weights_y[:, None], weights_x[None, :]).expand(channels, 1, -1, -1)
    images = tensor if tensor.ndim == 4 else tensor.unsqueeze(0)
    images = F.pad(images, (kernel_x // 2, kernel_x // 2, kernel_y // 2, kernel_y // 2), mode="reflect")
    blurred = F.conv2d(images, kernel, groups=channels)
    return blurred if tensor.ndim == 4 else blurred.squeeze(0)


def _gaussian_kernel(size: int, sigma: float, like: Tensor) -> Float[Tensor, " size"]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {size}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    half = (size - 1) * 0.5
    x = torch.linspace(-half, half, steps=size, dtype=like.dtype, device=like.device)
    density = torch.exp(-0.5 * (x / sigma).pow(2))
    return density / density.sum()


def image_to_tensor(
    image: PIL.Image.Image, device: Device | str | None = None, dtype: DType | None = None
) -> Float[Tensor, "1 channels height width"]:
    """Convert an image to a tensor in [0, 1].

    Args:
        image: An image of mode L, RGB or RGBA.
        device: Where to create the tensor.
        dtype: Its dtype (default: float32).

    Raises:
        ValueError: If the mode is another one.
    """
    return images_to_tensor([image], device=device, dtype=dtype)


def images_to_tensor(
    images: list[PIL.Image.Image], device: Device | str | None = None, dtype: DType | None = None
) -> Float[Tensor, "batch channels height width"]:
    """Convert images of the same mode and size to one tensor in [0, 1]. See `image_to_tensor`.

    Raises:
        ValueError: If the mode of an image is none of L, RGB and RGBA.
    """
    for image in images:
        if image.mode not in _CHANNELS:
            raise ValueError(f"Unsupported image mode: {image.mode}, expected one of {', '.join(_CHANNELS)}")
    pixels = [torch.from_numpy(np.array(image)).view(image.height, image.width, -1) for image in images]
    batch = pixels[0].unsqueeze(0) if len(pixels) == 1 else torch.stack(pixels)
    batch = batch.to(device=torch.get_default_device() if device is None else device)  # as bytes: a quarter of the size
    x = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # Divided by a tensor: on some devices a division by a number is a product with its rounded inverse.
    return x.div_(torch.full((), 255.0, device=x.device)).to(dtype=dtype)


def tensor_to_image(tensor: Float[Tensor, "1 channels height width"]) -> PIL.Image.Image:
    """Convert a tensor to an image of mode L, RGB or RGBA, for 1, 3 or 4 channels.

    Values are clamped to [0, 1], multiplied by 255, and truncated.

    Args:
        tensor: One image, with a batch dimension.

    Raises:
        AssertionError: If the tensor is not 4-D, or not exactly one image.
        ValueError: If the number of channels is another one.
    """
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise AssertionError(f"Unsupported tensor shape: {tuple(tensor.shape)}, expected (1, channels, height, width)")
    return tensor_to_images(tensor)[0]


def tensor_to_images(tensor: Float[Tensor, "batch channels height width"]) -> list[PIL.Image.Image]:
    """Convert a tensor to one image for each item of the batch. See `tensor_to_image`.

    Raises:
        AssertionError: If the tensor is not 4-D.
        ValueError: If the number of channels is none of 1, 3 and 4.
    """
    from PIL import Image

    if tensor.ndim != 4:
        raise AssertionError(
            f"Unsupported tensor shape: {tuple(tensor.shape)}, expected (batch, channels, height, width)"
        )
    channels = tensor.shape[1]
    if channels not in _CHANNELS.values():
        raise ValueError(f"Unsupported number of channels: {channels}, expected one of 1, 3, 4")
    pixels: UInt8[Tensor, "batch height width channels"]
    pixels = tensor.detach().float().clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1)
    if channels == 1:
        pixels = pixels.squeeze(3)
    return [Image.fromarray(item) for item in pixels.contiguous().cpu().numpy()]


def load_tensors(path: Path | str, /, device: Device | str = "cpu") -> dict[str, Tensor]:
    """Load a dictionary of tensors from a file written by `torch.save`.

    Args:
        path: The file.
        device: Where to put the tensors.

    Raises:
        pickle.UnpicklingError: If the file holds objects that are no plain data; they are not created.
        AssertionError: If it holds anything but a dictionary of names and tensors.
    """
    tensors: Any = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(tensors, dict):
        raise AssertionError(f"expected a dictionary of tensors in {path}, got {type(tensors).__name__}")
    for key, value in cast("dict[Any, Any]", tensors).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AssertionError(
                f"expected a dictionary of tensors in {path}, got {key!r} of type {type(value).__name__} in it"
            )
    return cast("dict[str, Tensor]", tensors)


def load_from_safetensors(path: Path | str, device: Device | str = "cpu") -> dict[str, Tensor]:
    """Load the tensors of a safetensors file.

    Args:
        path: The file.
        device: Where to put the tensors.
    """
    return safetensors.torch.load_file(path, device=str(device))


def save_to_safetensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save tensors to a safetensors file.

    Args:
        path: The file.
        tensors: The tensors, by name.
        metadata: Texts to save with them.

    Raises:
        RuntimeError: If two tensors share memory.
    """
    safetensors.torch.save_file(tensors, path, metadata)


def summarize_tensor(tensor: Shaped[Tensor, "*shape"], /) -> str:
    """Describe a tensor in one line: shape, dtype, device, statistics (of the real part), and whether it has gradients.

    Statistics are left out where there are no values: of empty tensors, and on the meta device. Never raises.
    """
    fields = [f"shape={tuple(tensor.shape)}", f"dtype={_name(tensor.dtype)}", f"device={tensor.device}"]
    if tensor.numel() > 0:
        # Without values (meta, fake), without the operation for this dtype or layout, without memory: no statistics.
        with suppress(Exception):
            fields += _statistics(tensor.detach())
        fields.append(f"grad={tensor.requires_grad}")
    return f"Tensor({', '.join(fields)})"


def _statistics(tensor: Tensor) -> list[str]:
    x = tensor.real if tensor.is_complex() else tensor
    x = x if x.dtype == torch.float64 else x.float()
    values: dict[str, Tensor] = {"mean": x.mean(), "norm": torch.linalg.vector_norm(x)}
    if not tensor.is_complex():
        low, high = x.aminmax()
        values = {"min": low, "max": high, **values}
    if x.numel() > 1:
        values["std"] = x.std()
    # Brought together first: one wait for the device instead of five.
    numbers = cast("list[float]", torch.stack(list(values.values())).tolist())
    return [f"{name}={number:.2f}" for name, number in zip(values, numbers)]


def _name(dtype: DType) -> str:
    return str(dtype).removeprefix("torch.")


def str_to_dtype(dtype: str) -> DType:
    """Return the dtype of a name, such as `"float16"` or `"half"`, in any case.

    Raises:
        ValueError: If there is none of that name.
    """
    try:
        return _DTYPES[dtype.lower()]
    except KeyError:
        raise ValueError(f"Unknown dtype: {dtype}, expected one of {', '.join(_DTYPES)}") from None


def device_has_bfloat16(device: Device) -> bool:
    """Return whether a device is a CUDA GPU that computes in bfloat16 (compute capability 8.0 and newer)."""
    version = torch.version.cuda
    if device.type != "cuda" or version is None or int(version.split(".")[0]) < 11:
        return False
    try:
        return torch.cuda.get_device_capability(device)[0] >= 8
    except (AssertionError, RuntimeError, ValueError):  # no driver, no such device
        return False
