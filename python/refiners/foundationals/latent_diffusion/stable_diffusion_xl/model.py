"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, device as Device, dtype as DType

from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.checks import check_tensor
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.noise import Generators
from refiners.foundationals.latent_diffusion.prompts import encode_prompts
from refiners.foundationals.latent_diffusion.reuse import Reused
from refiners.foundationals.latent_diffusion.solvers import DDIM, Solver
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.autoencoder import SDXLAutoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import DoubleTextEncoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import SDXLUNet


class StableDiffusion_XL(LatentDiffusionModel):
    """Stable Diffusion XL: images of about 1024x1024 pixels from prompts.

    See [[arXiv:2307.01952] SDXL](https://arxiv.org/abs/2307.01952). The networks are those of the checkpoint
    `stabilityai/stable-diffusion-xl-base-1.0`. To generate an image:

        model.set_inference_steps(30)
        embedding, pooled_embedding = model.compute_clip_text_embedding("a cute cat")
        x = model.init_latents((1024, 1024))
        for step in model.steps:
            x = model(
                x,
                step=step,
                clip_text_embedding=embedding,
                pooled_text_embedding=pooled_embedding,
                time_ids=model.default_time_ids,
            )
        image = model.lda.latents_to_image(x)
    """

    default_size = 1024

    unet: SDXLUNet  # pyright: ignore[reportIncompatibleVariableOverride]
    clip_text_encoder: DoubleTextEncoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        unet: SDXLUNet | None = None,
        lda: LatentDiffusionAutoencoder | None = None,
        clip_text_encoder: DoubleTextEncoder | None = None,
        solver: Solver | None = None,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Bring the parts of the model together.

        Args:
            unet: The U-Net (default: a new one, with random weights, as the others).
            lda: The autoencoder.
            clip_text_encoder: The encoder of prompts.
            solver: The solver (default: `DDIM` with 30 steps).
            device: Where the model runs.
            dtype: The dtype that it runs in.
        """
        super().__init__(
            unet=SDXLUNet(in_channels=4, device=device, dtype=dtype) if unet is None else unet,
            lda=SDXLAutoencoder(device=device, dtype=dtype) if lda is None else lda,
            clip_text_encoder=DoubleTextEncoder(device=device, dtype=dtype)
            if clip_text_encoder is None
            else clip_text_encoder,
            solver=DDIM(num_inference_steps=30) if solver is None else solver,
            device=device,
            dtype=dtype,
        )
        self._repeated: dict[int, Reused] = {}  # time ids for so many images

    def __call__(
        self,
        x: Float[Tensor, "batch 4 height width"],
        step: int,
        *,
        clip_text_embedding: Float[Tensor, "conditions tokens dim"],
        pooled_text_embedding: Float[Tensor, "conditions pooled_dim"],
        time_ids: Int[Tensor, "conditions 6"],
        condition_scale: float = 5.0,
        generator: Generators = None,
        **kwargs: Tensor,
    ) -> Float[Tensor, "batch 4 height width"]:
        """Take one step. See `LatentDiffusionModel.forward`.

        Args:
            x: The latents.
            step: The number of the step, one of `steps`.
            clip_text_embedding: The encoded prompts.
            pooled_text_embedding: The pooled encodings.
            time_ids: What the U-Net is told about sizes; see `compute_time_ids`. The rows of one image (one, or two
                with classifier-free guidance) stand for those of all.
            condition_scale: The weight of the guidance.
            generator: Draws the noise of the solvers that add some: one, or one for each image.
            kwargs: Further conditions, for the `set_unet_context` of a subclass.
        """
        return super().__call__(
            x,
            step,
            clip_text_embedding=clip_text_embedding,
            pooled_text_embedding=pooled_text_embedding,
            time_ids=time_ids,
            condition_scale=condition_scale,
            generator=generator,
            **kwargs,
        )

    def compute_clip_text_embedding(
        self, text: str | Sequence[str], negative_text: str | Sequence[str] = ""
    ) -> tuple[Float[Tensor, "conditions tokens dim"], Float[Tensor, "conditions pooled_dim"]]:
        """Encode prompts, all in one batch.

        Args:
            text: A prompt, or one for each image.
            negative_text: What to avoid: a text for all images, or one for each. Without classifier-free guidance it
                is not used.

        Returns:
            The encoded prompts and their pooled encodings; with classifier-free guidance the negative ones first.

        Raises:
            AssertionError: If there are several negative texts, but not as many as prompts.
            TypeError: If an argument is neither a text nor a list of them.
            ValueError: If there is no prompt.

        Warns:
            UserWarning: If a text is too long, with what of it was cut off.
        """
        return encode_prompts(self.clip_text_encoder, text, negative_text, self.classifier_free_guidance)

    @property
    def default_time_ids(self) -> Int[Tensor, "conditions 6"]:
        """What `compute_time_ids` gives for one image of 1024x1024 pixels."""
        return self.compute_time_ids((1024, 1024))

    def compute_time_ids(
        self,
        size: tuple[int, int],
        original_size: tuple[int, int] | None = None,
        crop_top_left: tuple[int, int] = (0, 0),
    ) -> Int[Tensor, "conditions 6"]:
        """Tell the U-Net about the sizes that an image of its training would have had.

        See [[arXiv:2307.01952] SDXL](https://arxiv.org/abs/2307.01952), section 2.2.

        Args:
            size: The height and width of the image to generate, in pixels.
            original_size: Those of the image before it was resized and cropped (default: `size`). A small one asks for
                an image that looks enlarged.
            crop_top_left: How many rows and columns were cropped from the top and the left.

        Returns:
            One row, or two equal ones with classifier-free guidance, for any number of images.
        """
        row = [*(original_size or size), *crop_top_left, *size]
        return torch.tensor([row] * (1 + self.classifier_free_guidance), device=self.device)

    def compute_conditions(
        self, text: str | Sequence[str], negative_text: str | Sequence[str] = "", *, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        embedding, pooled = self.compute_clip_text_embedding(text, negative_text)
        return {
            "clip_text_embedding": embedding,
            "pooled_text_embedding": pooled,
            "time_ids": self.compute_time_ids(size),
        }

    def set_unet_context(
        self,
        *,
        timestep: Tensor,
        clip_text_embedding: Tensor,
        pooled_text_embedding: Tensor,
        time_ids: Tensor,
        **_: Tensor,
    ) -> None:
        """Give the U-Net the timestep, the encoded prompts, and the sizes.

        Raises:
            TypeError: If `pooled_text_embedding` is of another dtype than the U-Net.
            ValueError: If a tensor has a wrong shape, or is on another device than the U-Net.
        """
        conditions, weight = clip_text_embedding.shape[0], next(self.unet.parameters())
        dim = self.unet.pooled_text_embedding_dim
        check_tensor("pooled_text_embedding", pooled_text_embedding, (conditions, dim), weight)
        check_tensor("time_ids", time_ids, ("rows", 6), weight, any_dtype=True)
        rows, rows_of_one = time_ids.shape[0], 1 + self.classifier_free_guidance
        if rows not in (conditions, rows_of_one):
            raise ValueError(f"time_ids must have {conditions} rows, or {rows_of_one} for all images alike, got {rows}")
        if rows != conditions:
            count = conditions // rows
            repeated = self._repeated.setdefault(count, Reused())  # the same tensor at each step
            time_ids = repeated(partial(torch.repeat_interleave, repeats=count, dim=0), (time_ids,), ())
        self.unet.set_timestep(timestep)
        self.unet.set_clip_text_embedding(clip_text_embedding)
        self.unet.set_time_ids(time_ids)
        self.unet.set_pooled_text_embedding(pooled_text_embedding)
