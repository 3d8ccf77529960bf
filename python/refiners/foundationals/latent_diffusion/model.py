"""What the diffusion models in a latent space have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.module import twin
from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.noise import Generators, sample_noise
from refiners.foundationals.latent_diffusion.solvers import Solver

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

TLatentDiffusionModel = TypeVar("TLatentDiffusionModel", bound="LatentDiffusionModel")


class LatentDiffusionModel(fl.Module, ABC):
    """Generate images by removing noise from latents, step by step, under the guidance of a text.

    See [[arXiv:2112.10752] High-Resolution Image Synthesis with Latent Diffusion Models](https://arxiv.org/abs/2112.10752)
    and, for the guidance, [[arXiv:2207.12598] Classifier-Free Diffusion Guidance](https://arxiv.org/abs/2207.12598).
    """

    default_size: ClassVar[int]  # the height and width of the images of the training, in pixels

    unet: fl.Chain
    lda: LatentDiffusionAutoencoder
    clip_text_encoder: fl.Chain
    solver: Solver

    def __init__(
        self,
        unet: fl.Chain,
        lda: LatentDiffusionAutoencoder,
        clip_text_encoder: fl.Chain,
        solver: Solver,
        classifier_free_guidance: bool = True,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Bring the parts of the model to one device and dtype.

        Args:
            unet: Predicts the noise in latents.
            lda: The autoencoder between images and latents.
            clip_text_encoder: Encodes prompts.
            solver: Removes the predicted noise.
            classifier_free_guidance: Whether each step predicts the noise twice, under a negative prompt and under the
                prompt, and moves away from the former. It may be assigned at any time.
            device: Where the model runs.
            dtype: The dtype that it runs in.
        """
        super().__init__()
        self.unet = unet
        self.lda = lda
        self.clip_text_encoder = clip_text_encoder
        self.solver = solver
        self.classifier_free_guidance = classifier_free_guidance
        self.to(device=device, dtype=dtype)

    @property
    def device(self) -> Device:
        """The device of the U-Net."""
        device = self.unet.device
        assert device is not None  # a U-Net has weights
        return device

    @property
    def dtype(self) -> DType:
        """The dtype of the U-Net."""
        dtype = self.unet.dtype
        assert dtype is not None
        return dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every way of moving a module comes through here, and the tables of a solver are no parameters.
        super()._apply(fn, recurse)
        self.solver.to(device=self.device, dtype=self.dtype)
        return self

    def set_inference_steps(self, num_steps: int, first_step: int = 0) -> None:
        """Rebuild the solver for another number of steps.

        Args:
            num_steps: The number of steps from pure noise to an image.
            first_step: The first one that is taken. To change an image with a strength between 0 and 1, give
                `round((1 - strength) * (num_steps - 1))`, and the image to `init_latents`.
        """
        self.solver = self.solver.rebuild(num_inference_steps=num_steps, first_inference_step=first_step)

    @property
    def steps(self) -> list[int]:
        """The numbers of the steps to take."""
        return self.solver.inference_steps

    @staticmethod
    def sample_noise(
        size: tuple[int, ...],
        device: Device | str | None = None,
        dtype: DType | None = None,
        offset_noise: float | None = None,
        generator: Generators = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Draw Gaussian noise. See `refiners.foundationals.latent_diffusion.noise.sample_noise`."""
        return sample_noise(size, device=device, dtype=dtype, offset_noise=offset_noise, generator=generator)

    def init_latents(
        self,
        size: tuple[int, int],
        init_image: Image.Image | Sequence[Image.Image] | None = None,
        noise: Float[Tensor, "batch 4 height width"] | None = None,
        *,
        batch_size: int | None = None,
        generator: Generators = None,
    ) -> Float[Tensor, "batch 4 height width"]:
        """Make the latents that the first step receives: noise, or images with as much noise as that step expects.

        Args:
            size: The height and width of the images, in pixels; latents have an eighth of each, rounded down.
            init_image: An image to start from, or one for each item of the batch. It is resized to `size`.
            noise: The noise (default: drawn, in the batch size of the images or generators, if there are several).
            batch_size: How many latents to make.
            generator: Draws the noise: one, or one for each item of the batch, which then depends on no other one.

        Raises:
            AssertionError: If the noise has another height or width.
            ValueError: If the numbers of images, of generators, of items of the noise and `batch_size` differ.
        """
        height, width = size[0] // 8, size[1] // 8
        if height < 1 or width < 1:
            raise ValueError(f"size must be at least (8, 8), got {size}")
        images = [] if init_image is None else list(init_image) if isinstance(init_image, Sequence) else [init_image]
        counts = {"batch_size": batch_size, "init_image": len(images) if len(images) > 1 else None}
        if noise is not None:
            if tuple(noise.shape[-2:]) != (height, width):
                raise AssertionError(
                    f"noise shape is not compatible with the size: expected (..., {height}, {width}) for {size[0]}x"
                    f"{size[1]} pixels, got {tuple(noise.shape)}"
                )
            counts["noise"] = noise.shape[0]
        elif isinstance(generator, Sequence):
            counts["generator"] = len(generator)
        given = {name: count for name, count in counts.items() if count is not None}
        if len(set(given.values())) > 1:
            described = ", ".join(f"{name}: {count}" for name, count in given.items())
            raise ValueError(f"init_latents: these must agree on the size of the batch, got {described}")
        if noise is None:
            batch = next(iter(given.values()), 1)
            noise = self.sample_noise((batch, 4, height, width), self.device, self.dtype, generator=generator)
        noise = noise.to(device=self.device, dtype=self.dtype)
        if not images:
            return self.solver.initial_latents(noise)
        latents = self.lda.images_to_latents([image.resize((size[1], size[0])) for image in images])
        return self.solver.initial_latents(noise, latents.expand_as(noise))

    @abstractmethod
    def set_unet_context(self, *, timestep: Tensor, clip_text_embedding: Tensor, **_: Tensor) -> None:
        """Give the U-Net what it needs besides the latents."""

    def concatenate_condition(
        self, latents: Float[Tensor, "batch 4 height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Append to scaled latents the channels that the U-Net expects besides them: none, here."""
        return latents

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        step: int,
        *,
        clip_text_embedding: Float[Tensor, "conditions tokens dim"],
        condition_scale: float = 7.5,
        generator: Generators = None,
        **kwargs: Tensor,
    ) -> Float[Tensor, "batch 4 height width"]:
        """Take one step: predict the noise in latents, and remove as much of it as the solver says.

        With classifier-free guidance the prediction is `negative + condition_scale * (positive - negative)`, and all
        conditions hold the negative ones first, then as many positive ones.

        Args:
            x: The latents, as the last step has left them. Channels beyond the fourth are shown to the U-Net alone.
            step: The number of the step, one of `steps`.
            clip_text_embedding: The encoded prompts, one for each image; twice as many with guidance.
            condition_scale: The weight of the guidance.
            generator: Draws the noise of the solvers that add some: one, or one for each image.
            kwargs: The other conditions of the U-Net; see `set_unet_context`.

        Raises:
            AssertionError: If with guidance the number of encoded prompts is odd, or the step is not one of `steps`.
            ValueError: If the number of encoded prompts does not fit the number of images.
        """
        guided = self.classifier_free_guidance
        prompts = clip_text_embedding.shape[0]
        if guided and prompts % 2:
            raise AssertionError(
                f"invalid batch size for classifier-free guidance: expected an even one, got {prompts}"
            )
        if prompts != x.shape[0] * (1 + guided):
            pairs = ", a negative and a positive one for each" if guided else ""
            raise ValueError(
                f"clip_text_embedding must have {x.shape[0] * (1 + guided)} items for {x.shape[0]} images{pairs},"
                f" got {prompts}"
            )
        if step not in self.steps:
            raise AssertionError(f"invalid step {step}: must be from {self.steps[0]} to {self.steps[-1]}")
        latents = self.concatenate_condition(self.solver.scale_model_input(x, step=step))
        timestep = self.solver.timesteps[step].unsqueeze(0)
        self.set_unet_context(timestep=timestep, clip_text_embedding=clip_text_embedding, **kwargs)
        if guided:
            negative, positive = self.unet(torch.cat((latents, latents))).chunk(2)
            prediction = torch.lerp(negative, positive, condition_scale)
        else:
            prediction = self.unet(latents)
        return self.solver(x[:, :4], predicted_noise=prediction, step=step, generator=generator)

    def structural_copy(self) -> Self:
        """Copy the model but for its weights and its solver, which both models share."""
        copy = twin(self)  # not by the constructor, which would move what both share
        copy.unet = self.unet.structural_copy()
        copy.lda = self.lda.structural_copy()
        copy.clip_text_encoder = self.clip_text_encoder.structural_copy()
        return copy

    @abstractmethod
    def compute_conditions(
        self, text: str | Sequence[str], negative_text: str | Sequence[str] = "", *, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Compute all that a step needs besides the latents, by the names of its arguments.

        Args:
            text: A prompt, or one for each image.
            negative_text: What to avoid: a text for all images, or one for each.
            size: The height and width of the images, in pixels.
        """

    @torch.no_grad()
    def generate(
        self,
        text: str | Sequence[str],
        negative_text: str | Sequence[str] = "",
        *,
        size: tuple[int, int] | None = None,
        num_steps: int = 30,
        condition_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        init_image: Image.Image | Sequence[Image.Image] | None = None,
        strength: float = 0.8,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Generate images: encode the prompts, take all steps, decode. The solver is rebuilt for the number of steps.

        Args:
            text: A prompt, or one for each image.
            negative_text: What to avoid: a text for all images, or one for each.
            size: The height and width in pixels, multiples of 8 (default: `default_size`, squared).
            num_steps: The number of steps.
            condition_scale: The weight of the guidance (default: that of the model).
            seed: The seed of the noise, or one for each image: an image does not depend on the others of its batch, nor
                on the device (default: torch's random state).
            init_image: An image to start from, or one for each image.
            strength: How much of `init_image` to give up, from 0, one step, to 1, all of them.
            on_step: Called after each step, with its number and the latents.

        Raises:
            ValueError: If the numbers of prompts, seeds and images differ, or the size or strength is out of range.
        """
        height, width = size or (self.default_size, self.default_size)
        if height < 8 or width < 8 or height % 8 or width % 8:
            raise ValueError(f"size must be two positive multiples of 8 (height, width), got {(height, width)}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be between 0 and 1, got {strength}")
        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts:
            raise ValueError("text must be a prompt or a list of at least one, got an empty list")
        seeds = list(seed) if isinstance(seed, Sequence) else None if seed is None else [seed]
        images = [] if init_image is None else list(init_image) if isinstance(init_image, Sequence) else [init_image]
        counts = {"text": len(prompts), "seed": len(seeds or []), "init_image": len(images)}
        batch = max(counts.values())
        if any(count not in (0, 1, batch) for count in counts.values()):
            raise ValueError(f"text, seed and init_image must hold one item, or one for each image, got {counts}")
        if seeds is not None and len(seeds) < batch:
            seeds = [seeds[0] + i for i in range(batch)]
        generators = None if seeds is None else [Generator().manual_seed(one) for one in seeds]

        conditions = self.compute_conditions(prompts * (batch // len(prompts)), negative_text, size=(height, width))
        self.set_inference_steps(num_steps, round((1 - strength) * (num_steps - 1)) if images else 0)
        options = {} if condition_scale is None else {"condition_scale": condition_scale}
        x = self.init_latents((height, width), images or None, batch_size=batch, generator=generators)
        for step in self.steps:
            x = self(x, step=step, generator=generators, **conditions, **options)
            if on_step is not None:
                on_step(step, x)
        return self.lda.latents_to_images(x)

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str,
        *,
        solver: Solver | None = None,
        lda: LatentDiffusionAutoencoder | None = None,
        clip_text_encoder: fl.Chain | None = None,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
        variant: str | None = None,
    ) -> Self:
        """Load a checkpoint of any of the public formats, without a converted copy.

        Args:
            path: A folder in the format of diffusers, or a single file.
            solver: The solver (default: that of the model, or what its folder says it was distilled for; in any case
                for what the U-Net predicts).
            lda: An autoencoder to take instead of that of the checkpoint, which then needs to have none.
            clip_text_encoder: The same of the text encoder.
            device: Where the model runs.
            dtype: The dtype that it runs in.
            variant: Which of the variants of a folder is meant, such as `"fp16"`.

        Raises:
            FileNotFoundError: If there is nothing at the path.
            ValueError: If the checkpoint is not whole, or of no structure that is known.
            TypeError: If it is of another kind of model.
        """
        from refiners.conversion.pretrained import load_pretrained

        return load_pretrained(
            cls,
            path,
            solver=solver,
            lda=lda,
            clip_text_encoder=clip_text_encoder,
            device=device,
            dtype=dtype,
            variant=variant,
        )
