"""Whole models from public checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Size, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.conversion.detection import Found
from refiners.conversion.diffusion import DiffusionCheckpoint, SchedulerConfig, open_diffusion_checkpoint
from refiners.conversion.loading import load_into
from refiners.conversion.naming.unet import UNetLayout
from refiners.foundationals.clip.text_encoder import (
    CLIPTextEncoder,
    CLIPTextEncoderG,
    CLIPTextEncoderL,
    CLIPTextEncoderSizes,
)
from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.checks import shown
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DPMSolver,
    EulerAncestral,
    LCMSolver,
    ModelPredictionType,
    Solver,
    SolverParams,
    TimestepSpacing,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import (
    SD1Autoencoder,
    SD1UNet,
    StableDiffusion_1,
    StableDiffusion_1_Inpainting,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import (
    DoubleTextEncoder,
    SDXLAutoencoder,
    SDXLUNet,
    StableDiffusion_XL,
)

M = TypeVar("M", bound=LatentDiffusionModel)
Configs = Mapping[str, Mapping[str, Any]]  # those of the subfolders

_PREDICTIONS = {
    "epsilon": ModelPredictionType.NOISE,
    "sample": ModelPredictionType.SAMPLE,
    "v_prediction": ModelPredictionType.VELOCITY,
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SCHEDULES = {"linear": "uniform", "scaled_linear": "quadratic"}


def load_pretrained(
    kind: type[M],
    path: Path | str,
    *,
    solver: Solver | None = None,
    lda: LatentDiffusionAutoencoder | None = None,
    clip_text_encoder: fl.Chain | None = None,
    device: Device | str = "cpu",
    dtype: DType = torch.float32,
    variant: str | None = None,
) -> M:
    """Load a checkpoint of Stable Diffusion 1.5 or XL, or of a model of their structure.

    Weights are read one by one, straight to their device and dtype; see `refiners.conversion.loading.load_into`.

    Args:
        kind: The class of the model; `LatentDiffusionModel` for any.
        path: A folder in the format of diffusers, or a single file.
        solver: The solver (default: that of the model, told what the checkpoint predicts).
        lda: An autoencoder to take instead of that of the checkpoint, which then needs to have none.
        clip_text_encoder: The same of the text encoder.
        device: Where the model runs.
        dtype: The dtype that it runs in.
        variant: Which of the variants of a folder is meant, such as `"fp16"`.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the checkpoint is not whole, or of no structure that is known; or if there is no such device.
        TypeError: If it is of another kind of model, or an argument is of a wrong type. Arguments are checked before
            anything is read.
    """
    _check_arguments(
        device, dtype, solver=(solver, Solver), lda=(lda, fl.Chain), clip_text_encoder=(clip_text_encoder, fl.Chain)
    )
    with open_diffusion_checkpoint(path, variant) as checkpoint:
        found = _kind_of(checkpoint)
        if not issubclass(found, kind):
            raise TypeError(f"{path} holds a {found.__name__}, not a {kind.__name__}: load it by that class")
        given = {"lda": lda, "clip_text_encoder": clip_text_encoder}
        missing = [name for name, part in given.items() if part is None and getattr(checkpoint, name) is None]
        if missing:
            raise ValueError(
                f"{path} has a U-Net, but lacks what a {found.__name__} needs besides: {', '.join(missing)}"
            )
        make: tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]] = (
            (_xl_unet, _xl_autoencoder, _double_text_encoder)
            if found is StableDiffusion_XL
            else (_sd1_unet, _sd1_autoencoder, _text_encoder)
        )
        configs = checkpoint.config.raw

        def load(make: Callable[..., Any], weights: Found | None) -> Any:
            assert weights is not None  # otherwise it is missing
            return load_into(make(weights, configs), weights, device=device, dtype=dtype)

        model = found(
            unet=load(make[0], checkpoint.unet),
            lda=load(make[1], checkpoint.lda) if lda is None else cast(Any, lda),
            clip_text_encoder=load(make[2], checkpoint.clip_text_encoder)
            if clip_text_encoder is None
            else cast(Any, clip_text_encoder),
            solver=_solver(found, checkpoint) if solver is None else solver,
            device=device,
            dtype=dtype,
        )
        if lda is None:
            model.lda.encoder_scale = checkpoint.config.latent_scale
    # Images come out of attention with their channels last: kernels of another layout would be turned at each call.
    model.unet.to(memory_format=torch.channels_last)
    return cast(M, model.requires_grad_(False))


def _check_arguments(device: object, dtype: object, **parts: tuple[object, type]) -> None:
    if dtype not in _DTYPES:
        given = dtype if isinstance(dtype, DType) else shown(dtype)
        raise TypeError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {given}")
    if isinstance(device, bool) or not isinstance(device, (str, int, Device)):
        raise TypeError(f"device must be a torch.device or its name, got {shown(device)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that is here, such as 'cpu', got {str(device)!r}: {reason}") from error
    for name, (part, kind) in parts.items():
        if part is not None and not isinstance(part, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {shown(part)}")


def _kind_of(checkpoint: DiffusionCheckpoint) -> type[StableDiffusion_1 | StableDiffusion_XL]:
    channels = checkpoint.config.in_channels
    if checkpoint.family == "sdxl" and channels == 4:
        return StableDiffusion_XL
    if checkpoint.family == "sd1" and channels == 4:
        return StableDiffusion_1
    if checkpoint.family == "sd1" and channels == 9:
        return StableDiffusion_1_Inpainting
    raise ValueError(
        f"{checkpoint.path} holds a U-Net of {checkpoint.family} with {channels} input channels: expected sd1"
        " with 4 or 9, or sdxl with 4"
    )


# Sizes are those of the weights. What these do not tell, numbers of heads and groups, is in the configuration of a
# folder, and otherwise as published.


def _sd1_unet(found: Found, configs: Configs) -> SD1UNet:
    layout, shapes, config = cast(UNetLayout, found.layout), found.shapes, configs.get("unet", {})
    return SD1UNet(
        shapes["DownBlocks.Chain_1.Conv2d.weight"][1],
        channels=layout.channels,
        text_embedding_dim=_text_dim(shapes),
        num_attention_heads=_integer(config, "attention_head_dim", 8),  # what it has long been called there
        num_groups=_integer(config, "norm_num_groups", 32),
        device="meta",
    )


def _xl_unet(found: Found, configs: Configs) -> SDXLUNet:
    layout, shapes, config = cast(UNetLayout, found.layout), found.shapes, configs.get("unet", {})
    time_ids_dim = _integer(config, "addition_time_embed_dim", 256)
    heads: Any = config.get("attention_head_dim")  # numbers of heads, one for each resolution or one for all
    if isinstance(heads, list) and heads:
        heads = cast("list[Any]", heads)[-1]
    last: dict[str, Any] = {"attention_head_dim": heads}
    head_dim = 64 if heads is None else layout.channels[-1] // _integer(last, "attention_head_dim", 1)
    return SDXLUNet(
        shapes["DownBlocks.Chain_1.Conv2d.weight"][1],
        channels=layout.channels,
        text_embedding_dim=_text_dim(shapes),
        pooled_text_embedding_dim=shapes["TimestepEncoder.Sum.TextTimeEmbedding.Linear_1.weight"][1] - 6 * time_ids_dim,
        num_attention_layers=layout.depths,
        head_dim=head_dim,
        time_ids_embedding_dim=time_ids_dim,
        num_groups=_integer(config, "norm_num_groups", 32),
        device="meta",
    )


def _text_dim(shapes: Mapping[str, Size]) -> int:
    suffix = "Residual_2.Attention.Distribute.Linear_2.weight"
    return next(shape[1] for key, shape in shapes.items() if key.endswith(suffix))


def _sd1_autoencoder(found: Found, configs: Configs) -> SD1Autoencoder:
    return SD1Autoencoder(found.layout.channels, num_groups=_groups(configs), device="meta")


def _xl_autoencoder(found: Found, configs: Configs) -> SDXLAutoencoder:
    return SDXLAutoencoder(found.layout.channels, num_groups=_groups(configs), device="meta")


def _groups(configs: Configs) -> int:
    return _integer(configs.get("vae", {}), "norm_num_groups", 32)


def _integer(config: Mapping[str, Any], key: str, default: int) -> int:
    """Read a positive number of a configuration."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {key} must be a positive whole number, got {value!r}")
    return value


def _text_encoder(found: Found, configs: Configs) -> CLIPTextEncoder:
    return CLIPTextEncoderL(device="meta", **_text_sizes(found.shapes, "", configs.get("text_encoder", {})))


def _double_text_encoder(found: Found, configs: Configs) -> DoubleTextEncoder:
    # The last layer of the first is not used, that of the second is elsewhere.
    first = _text_sizes(found.shapes, "Parallel.CLIPTextEncoderL.", configs.get("text_encoder", {}), more_layers=1)
    below = "Parallel.TextEncoderWithPooling.CLIPTextEncoderG."
    second = _text_sizes(found.shapes, below, configs.get("text_encoder_2", {}), more_layers=1)
    encoders = CLIPTextEncoderL(device="meta", **first), CLIPTextEncoderG(device="meta", **second)
    return DoubleTextEncoder(*encoders, device="meta")


def _text_sizes(
    shapes: Mapping[str, Size], prefix: str, config: Mapping[str, Any], more_layers: int = 0
) -> CLIPTextEncoderSizes:
    below = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    vocabulary_size, dim = below["Sum.TokenEncoder.weight"]
    sizes: CLIPTextEncoderSizes = {
        "embedding_dim": dim,
        "max_sequence_length": below["Sum.PositionalEncoder.Embedding.weight"][0],
        "vocabulary_size": vocabulary_size,
        "num_layers": sum(key.endswith("Residual_1.LayerNorm.weight") for key in below) + more_layers,
        "num_attention_heads": _integer(config, "num_attention_heads", max(1, dim // 64)),
        "feedforward_dim": below["TransformerLayer_1.Residual_2.FeedForward.Linear_1.weight"][0],
    }
    if "hidden_act" in config:
        if config["hidden_act"] not in ("gelu", "quick_gelu"):
            raise ValueError(f"config.json: hidden_act must be gelu or quick_gelu, got {config['hidden_act']!r}")
        sizes["use_quick_gelu"] = config["hidden_act"] == "quick_gelu"
    return sizes


def _solver(kind: type[LatentDiffusionModel], checkpoint: DiffusionCheckpoint) -> Solver:
    """Make the solver of a model, for what its U-Net predicts and the noise it was trained with."""
    config = checkpoint.config
    prediction = config.prediction_type or "epsilon"
    if prediction not in _PREDICTIONS:
        raise ValueError(f"{checkpoint.path} predicts by {prediction!r}, for which there is no solver: give one")
    params: dict[str, Any] = {"model_prediction_type": _PREDICTIONS[prediction]}
    if config.zero_snr:
        params["rescale_zero_terminal_snr"] = True
    if config.zero_snr or (config.scheduler is not None and config.scheduler.timestep_spacing == "trailing"):
        # Such models need the last timestep: those without signal there, and those that were distilled for few steps.
        params |= {"timesteps_spacing": TimestepSpacing.TRAILING_ROUNDED, "timesteps_offset": 0}
    make: Callable[..., Solver] = DDIM if kind is StableDiffusion_XL else DPMSolver
    # Models that were distilled for a few steps need their solver; to others it is a matter of taste.
    if config.scheduler is not None:
        params |= _noise_params(config.scheduler)
        if config.scheduler.class_name == "LCMScheduler":
            make = partial(LCMSolver, num_orig_steps=_integer(config.scheduler.raw, "original_inference_steps", 50))
        elif config.scheduler.class_name == "EulerAncestralDiscreteScheduler" and "timesteps_spacing" in params:
            make = EulerAncestral
    return make(num_inference_steps=30, params=SolverParams(**params))


def _noise_params(scheduler: SchedulerConfig) -> dict[str, Any]:
    if scheduler.beta_schedule not in _SCHEDULES:
        raise ValueError(f"scheduler: beta_schedule must be one of {list(_SCHEDULES)}, got {scheduler.beta_schedule!r}")
    return {
        "num_train_timesteps": scheduler.num_train_timesteps,
        "initial_diffusion_rate": scheduler.beta_start,
        "final_diffusion_rate": scheduler.beta_end,
        "noise_schedule": _SCHEDULES[scheduler.beta_schedule],
    }
