"""LoRAs with which Stable Diffusion XL needs few steps."""

from __future__ import annotations

from torch import Tensor

from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import StableDiffusion_XL


def add_lcm_lora(
    manager: SDLoraManager,
    tensors: dict[str, Tensor],
    name: str = "lcm",
    scale: float = 8.0 / 64.0,
    check_validity: bool = True,
) -> None:
    """Add an LCM-LoRA or an SDXL-Lightning LoRA to Stable Diffusion XL.

    See [[arXiv:2311.05556] LCM-LoRA](https://arxiv.org/abs/2311.05556) and
    [[arXiv:2402.13929] SDXL-Lightning](https://arxiv.org/abs/2402.13929). Use it with `LCMSolver` and 4 steps, with a
    `condition_scale` from 1 to 2, or without classifier-free guidance.

    Args:
        manager: The manager of the model.
        tensors: The tensors of the file, with the names of diffusers as kohya-ss/sd-scripts writes them.
        name: How to call it.
        scale: The whole multiplier: alphas of the file are not read. That of the published files is 8 / 64.
        check_validity: Whether names that are not known are an error; otherwise such updates are attached by order and
            shape.

    Raises:
        AssertionError: If the model is another one, a key is no such name, or the name is taken.
        ValueError: If something cannot be attached. In any case the model is as it was.
    """
    if not isinstance(manager.target, StableDiffusion_XL):
        raise AssertionError(f"manager must be of a StableDiffusion_XL, got {type(manager.target).__name__}")
    if strange := [key for key in tensors if not key.startswith("lora_unet_")]:
        raise AssertionError(f"tensors must have keys that begin with lora_unet_, got {strange[0]}")
    if check_validity:
        _check_names(manager, tensors)
    manager.add_loras(name, {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}, scale)


def _check_names(manager: SDLoraManager, tensors: dict[str, Tensor]) -> None:
    from refiners.conversion.lora import inspect_lora

    unknown = inspect_lora(tensors, manager.target).plan.of_status("unknown")
    if unknown:
        names = ", ".join(update.name for update in unknown[:4])
        raise AssertionError(f"bad mapping: no layer is known by {len(unknown)} names, such as {names}")
