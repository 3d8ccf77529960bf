"""Open the weights of a whole Stable Diffusion, in one file or in the folders of diffusers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from refiners.conversion.checkpoint import Checkpoint, JoinedSource, TensorSource
from refiners.conversion.detection import Found, find_components
from refiners.conversion.formats import Component
from refiners.conversion.naming.unet import UNetLayout

if TYPE_CHECKING:
    from typing_extensions import Self

Family: TypeAlias = Literal["sd1", "sd2", "sdxl", "sdxl_refiner"]
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample", "edm"]

# What people call them.
FAMILY_TITLES: Mapping[Family, str] = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl_refiner": "the refiner of Stable Diffusion XL",
}

_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder")
_LATENT_SCALES: dict[Family, float] = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl_refiner": 0.13025}
# Empty tensors, or constants, with which fine-tuned models say in one file what their U-Net predicts.
_MARKERS: dict[str, PredictionType] = {"v_pred": "v_prediction", "edm_mean": "edm", "edm_vpred.sigma_max": "edm"}
_MODELSPEC: dict[str, PredictionType] = {"v": "v_prediction", "epsilon": "epsilon"}


@dataclass(frozen=True)
class SchedulerConfig:
    """What the folder of a pipeline says of its noise schedule.

    Attributes:
        class_name: The scheduler's class in diffusers.
        prediction_type: What the U-Net predicts.
        num_train_timesteps: The number of timesteps.
        beta_start: The first noise variance.
        beta_end: The last.
        beta_schedule: How they go from one to the other: `"scaled_linear"`, `"linear"`, ...
        timestep_spacing: Where the timesteps of an inference are: `"leading"`, `"trailing"`, `"linspace"`, or None.
        steps_offset: What is added to them.
        rescale_betas_zero_snr: Whether the last timestep is pure noise.
        raw: The whole file.
    """

    class_name: str
    prediction_type: PredictionType
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    timestep_spacing: str | None
    steps_offset: int
    rescale_betas_zero_snr: bool
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SchedulerConfig:
        """Read `scheduler_config.json`; what it does not say is as diffusers has it by default."""
        return cls(
            class_name=raw.get("_class_name", ""),
            prediction_type=raw.get("prediction_type", "epsilon"),
            num_train_timesteps=raw.get("num_train_timesteps", 1000),
            beta_start=raw.get("beta_start", 0.0001),
            beta_end=raw.get("beta_end", 0.02),
            beta_schedule=raw.get("beta_schedule", "linear"),
            timestep_spacing=raw.get("timestep_spacing"),
            steps_offset=raw.get("steps_offset", 0),
            rescale_betas_zero_snr=raw.get("rescale_betas_zero_snr", False),
            raw=raw,
        )


@dataclass(frozen=True)
class InferenceConfig:
    """What must be known to run a model, apart from its weights.

    Attributes:
        in_channels: The input channels of the U-Net: 4, 9 for inpainting, 8 for IC-Light and InstructPix2Pix.
        channels: The channels of each of its levels.
        cross_attention_dim: The dimension of the text embeddings; 0 if there is no cross-attention.
        prediction_type: What the U-Net predicts; None where neither a file nor convention says it.
        zero_snr: Whether the last timestep is pure noise.
        latent_scale: What latents are multiplied with when they are encoded.
        scheduler: What the folder of a pipeline says of its noise schedule.
        raw: The configuration of each model in a folder, by the name of its subfolder.
    """

    in_channels: int
    channels: tuple[int, ...]
    cross_attention_dim: int
    prediction_type: PredictionType | None
    zero_snr: bool
    latent_scale: float
    scheduler: SchedulerConfig | None
    raw: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net sees a mask and the masked image besides the latents."""
        return self.in_channels == 9


@dataclass
class DiffusionCheckpoint:
    """The weights of a Stable Diffusion, opened without reading a tensor.

    It is a context manager, which closes the files at its end. Each of its models goes into a module by `load_into`.

    Attributes:
        path: Where they are.
        family: Which Stable Diffusion.
        unet: The U-Net.
        lda: The autoencoder, if it is there.
        clip_text_encoder: The text encoder, or the pair of Stable Diffusion XL, if it is there.
        config: What else must be known to run it.
    """

    path: Path
    family: Family
    unet: Found
    lda: Found | None
    clip_text_encoder: Found | None
    config: InferenceConfig
    _checkpoints: list[Checkpoint] = field(repr=False, default_factory=list[Checkpoint])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; tensors that were read stay."""
        for checkpoint in self._checkpoints:
            checkpoint.close()


def open_diffusion_checkpoint(path: Path | str, variant: str | None = None) -> DiffusionCheckpoint:
    """Open the weights of a Stable Diffusion 1.5 or XL, or of a model of their structure.

    Args:
        path: A file of a whole pipeline, as the original implementation saves it; or a folder, as diffusers does.
        variant: Which of the variants of a folder is meant; see `Checkpoint`.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there is no U-Net, or one of the models is not whole. It lists what is missing or unknown.
    """
    opened = OpenedSources(Path(path), variant)
    try:
        found: dict[Component, Found] = {each.component: each for each in opened.find()}
        unet = found.get("unet_sd1") or found.get("unet_sdxl")
        if unet is None:
            holds = (
                ", ".join(f"{each.component} ({each.format})" for each in found.values()) or "no model that is known"
            )
            first = ", ".join(key for source in opened.sources for key in list(source.infos)[:3])
            raise ValueError(
                f"{path} has no U-Net of Stable Diffusion 1.5 or XL; it holds {holds}; first keys: {first}"
            )
        text = found.get("double_text_encoder" if unet.component == "unet_sdxl" else "clip_text")
        for each in (unet, found.get("autoencoder"), text):
            if each is not None:
                each.check()
        family = family_of(found)
        assert family is not None
        return DiffusionCheckpoint(
            path=opened.path,
            family=family,
            unet=unet,
            lda=found.get("autoencoder"),
            clip_text_encoder=text,
            config=inference_config(opened, unet, family),
            _checkpoints=opened.checkpoints,
        )
    except BaseException:
        opened.close()
        raise


class OpenedSources:
    """The files of a path, whatever it is: one file, a folder of one model, or a folder of a pipeline.

    Attributes:
        path: The path.
        is_pipeline: Whether it is a folder of a pipeline.
        checkpoints: The files that are open.
        sources: The same, with the two text encoders of Stable Diffusion XL as one.
        configs: The configuration of each subfolder, and `model_index` and `scheduler`.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self.path = path
        self.checkpoints: list[Checkpoint] = []
        self.configs: dict[str, Mapping[str, Any]] = {}
        self.is_pipeline = path.is_dir() and any((path / name).is_dir() for name in _FOLDERS)
        try:
            self.sources = list(self._open(variant))
        except BaseException:
            self.close()
            raise

    def _open(self, variant: str | None) -> Iterator[TensorSource]:
        if not self.is_pipeline:
            yield self._opened(self.path, variant)
            return
        self._read_config("model_index", self.path / "model_index.json")
        self._read_config("scheduler", self.path / "scheduler" / "scheduler_config.json")
        opened: dict[str, TensorSource] = {}
        for name in _FOLDERS:
            if (self.path / name).is_dir():
                self._read_config(name, self.path / name / "config.json")
                opened[name] = self._opened(self.path / name, variant)
        if "text_encoder" in opened and "text_encoder_2" in opened:
            texts = {f"{name}/": opened.pop(name) for name in ("text_encoder", "text_encoder_2")}
            opened["text_encoders"] = JoinedSource(texts)
        yield from opened.values()

    def _opened(self, path: Path, variant: str | None) -> Checkpoint:
        self.checkpoints.append(Checkpoint(path, variant))
        return self.checkpoints[-1]

    def _read_config(self, name: str, path: Path) -> None:
        if not path.is_file():
            return
        try:
            content: Any = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"{path} must hold an object, got {type(content).__name__}")
        self.configs[name] = cast("Mapping[str, Any]", content)

    def find(self) -> list[Found]:
        """Find the models in all files."""
        return [found for source in self.sources for found in find_components(source)]

    def close(self) -> None:
        """Close the files."""
        for checkpoint in self.checkpoints:
            checkpoint.close()


def family_of(found: Mapping[Component, Found]) -> Family | None:
    """Tell which Stable Diffusion some models are of; None without a U-Net."""
    unet = found.get("unet_sd1") or found.get("unet_sdxl")
    if unet is None:
        return None
    text = found.get("clip_text")
    dim = _cross_attention_dim(unet)
    if unet.component == "unet_sdxl":
        is_refiner = dim == 1280 and "double_text_encoder" not in found
        return "sdxl_refiner" if is_refiner else "sdxl"
    is_open_clip = text is not None and text.format.prefix == "cond_stage_model.model."
    return "sd2" if dim == 1024 or is_open_clip else "sd1"


def _cross_attention_dim(unet: Found) -> int:
    keys = (key for key in unet.recipes if key.endswith("Residual_2.Attention.Distribute.Linear_2.weight"))
    key = next(keys, None)
    return 0 if key is None else unet.recipes[key].shape[1]


def inference_config(opened: OpenedSources, unet: Found, family: Family) -> InferenceConfig:
    """Gather what files and conventions say of a model beyond its weights."""
    raw = opened.configs.get("scheduler")
    scheduler = None if raw is None else SchedulerConfig.from_dict(raw)
    layout = cast(UNetLayout, unet.layout)
    return InferenceConfig(
        in_channels=unet.recipes["DownBlocks.Chain_1.Conv2d.weight"].shape[1],
        channels=layout.channels,
        cross_attention_dim=_cross_attention_dim(unet),
        prediction_type=_prediction_type(opened, family) if scheduler is None else scheduler.prediction_type,
        zero_snr=any("ztsnr" in source.infos for source in opened.sources)
        or (scheduler is not None and scheduler.rescale_betas_zero_snr),
        latent_scale=float(opened.configs.get("vae", {}).get("scaling_factor") or _LATENT_SCALES[family]),
        scheduler=scheduler,
        raw=opened.configs,
    )


def _prediction_type(opened: OpenedSources, family: Family) -> PredictionType | None:
    for checkpoint in opened.checkpoints:
        for marker, prediction in _MARKERS.items():
            if marker in checkpoint:
                return prediction
        spec = checkpoint.metadata.get("modelspec.prediction_type", "")
        if spec in _MODELSPEC:
            return _MODELSPEC[spec]
    return None if family == "sd2" else "epsilon"  # there are both kinds of the former, with equal names
