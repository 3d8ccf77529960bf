"""What the diffusion models in a latent space have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.module import twin
from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.checks import check_batch, check_tensor
from refiners.foundationals.latent_diffusion.noise import Generators, check_generator, sample_noise
from refiners.foundationals.latent_diffusion.requests import read_request, read_start
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
            AssertionError: If the noise has another height or width, or not four channels.
            TypeError: If an argument is of a wrong type.
            ValueError: If the size is less than 8 by 8 pixels, or the numbers of images, of generators, of items of the
                noise and `batch_size` differ.
        """
        start = read_start(size, init_image, noise, batch_size=batch_size, generator=generator)
        if noise is None:
            noise = self.sample_noise(start.latents_shape, self.device, self.dtype, generator=generator)
        noise = noise.to(device=self.device, dtype=self.dtype)
        if not start.images:
            return self.solver.initial_latents(noise)
        latents = self.lda.images_to_latents([image.resize((size[1], size[0])) for image in start.images])
        return self.solver.initial_latents(noise, latents.expand_as(noise))

    @abstractmethod
    def set_unet_context(self, *, timestep: Tensor, clip_text_embedding: Tensor, **_: Tensor) -> None:
        """Give the U-Net what it needs besides the latents."""

    def concatenate_condition(
        self, latents: Float[Tensor, "batch 4 height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Append to scaled latents the channels that the U-Net expects besides them: none, here."""
        return latents

    def _own_size(self) -> tuple[int, int]:
        """Give the height and width of images that nobody asked for another one, in pixels."""
        return self.default_size, self.default_size

    def _appended(self, batch: int, height: int, width: int) -> Sequence[Tensor]:
        """Give what `concatenate_condition` appends; raise unless it is there, for latents of this size."""
        return ()

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
            TypeError: If a tensor is of another dtype than the U-Net.
            ValueError: If the number of encoded prompts does not fit the number of images, or a tensor is of a wrong
                shape or on another device than the U-Net.
        """
        weight = next(self.unet.parameters())
        guided = self.classifier_free_guidance
        check_batch(x, clip_text_embedding, guided, weight)
        check_generator(generator, x)
        if step not in self.steps:
            raise AssertionError(f"invalid step {step}: must be from {self.steps[0]} to {self.steps[-1]}")
        latents = self.concatenate_condition(self.solver.scale_model_input(x, step=step))
        channels = getattr(self.unet, "in_channels", latents.shape[1]) - (latents.shape[1] - x.shape[1])
        check_tensor("x", x, ("batch", channels, "height", "width"), weight)
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
            size: The height and width in pixels, multiples of 8 (default: those of `init_image`, rounded, or else
                `default_size`, squared).
            num_steps: The number of steps.
            condition_scale: The weight of the guidance (default: that of the model).
            seed: The seed of the noise, from 0 to 2⁶⁴ - 1, or one for each image: an image does not depend on the
                others of its batch, nor on the device (default: torch's random state). After one seed for several
                images come those that follow it.
            init_image: An image of mode RGB to start from, or one for each image.
            strength: How much of `init_image` to give up, from 0, one step, to 1, all of them.
            on_step: Called after each step, with its number and the latents.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If the numbers of texts, seeds and images differ, or an argument is out of range. Nothing was
                computed or changed.

        Warns:
            UserWarning: If a text is too long, with what of it was cut off.
            RuntimeWarning: If the images hold numbers that are not finite.
        """
        request = read_request(
            text,
            negative_text,
            size=size,
            default_size=self._own_size(),
            num_steps=num_steps,
            condition_scale=condition_scale,
            seed=seed,
            init_image=init_image,
            strength=strength,
            on_step=on_step,
        )
        self._appended(request.batch_size, *(side // 8 for side in request.size))
        solver = self.solver.rebuild(request.num_steps, request.first_step)
        conditions = self.compute_conditions(request.prompts, request.negatives, size=request.size)
        self.solver = solver
        options = {} if request.condition_scale is None else {"condition_scale": request.condition_scale}
        batch, generators = request.batch_size, request.generators
        x = self.init_latents(request.size, request.images or None, batch_size=batch, generator=generators)
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
            ValueError: If the checkpoint is not whole, or of no structure that is known; or if there is no such device.
            TypeError: If it is of another kind of model, or an argument is of a wrong type.
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
