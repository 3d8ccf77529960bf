"""Stable Diffusion 1.5, and its variant that paints into a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, device as Device, dtype as DType

from refiners.fluxion.utils import images_to_tensor, interpolate
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder, CLIPTextEncoderL
from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.checks import as_images
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.noise import Generators
from refiners.foundationals.latent_diffusion.prompts import encode_prompts
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, Solver
from refiners.foundationals.latent_diffusion.stable_diffusion_1.autoencoder import SD1Autoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import SD1UNet


class StableDiffusion_1(LatentDiffusionModel):
    """Stable Diffusion 1.5: images of about 512x512 pixels from prompts.

    The networks are those of the checkpoint `runwayml/stable-diffusion-v1-5`. To generate an image:

        model.set_inference_steps(30)
        embedding = model.compute_clip_text_embedding("a cute cat")
        x = model.init_latents((512, 512))
        for step in model.steps:
            x = model(x, step=step, clip_text_embedding=embedding)
        image = model.lda.latents_to_image(x)
    """

    default_size = 512

    unet: SD1UNet  # pyright: ignore[reportIncompatibleVariableOverride]
    clip_text_encoder: CLIPTextEncoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        unet: SD1UNet | None = None,
        lda: LatentDiffusionAutoencoder | None = None,
        clip_text_encoder: CLIPTextEncoder | None = None,
        solver: Solver | None = None,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Bring the parts of the model together.

        Args:
            unet: The U-Net (default: a new one, with random weights, as the others).
            lda: The autoencoder.
            clip_text_encoder: The encoder of prompts.
            solver: The solver (default: `DPMSolver` with 30 steps).
            device: Where the model runs.
            dtype: The dtype that it runs in.
        """
        super().__init__(
            unet=self._make_unet(device, dtype) if unet is None else unet,
            lda=SD1Autoencoder(device=device, dtype=dtype) if lda is None else lda,
            clip_text_encoder=CLIPTextEncoderL(device=device, dtype=dtype)
            if clip_text_encoder is None
            else clip_text_encoder,
            solver=DPMSolver(num_inference_steps=30) if solver is None else solver,
            device=device,
            dtype=dtype,
        )

    @staticmethod
    def _make_unet(device: Device | str, dtype: DType) -> SD1UNet:
        return SD1UNet(in_channels=4, device=device, dtype=dtype)

    def __call__(
        self,
        x: Float[Tensor, "batch 4 height width"],
        step: int,
        *,
        clip_text_embedding: Float[Tensor, "conditions tokens dim"],
        condition_scale: float = 7.5,
        generator: Generators = None,
    ) -> Float[Tensor, "batch 4 height width"]:
        """Take one step. See `LatentDiffusionModel.forward`."""
        return super().__call__(
            x,
            step,
            clip_text_embedding=clip_text_embedding,
            condition_scale=condition_scale,
            generator=generator,
        )

    def compute_clip_text_embedding(
        self, text: str | Sequence[str], negative_text: str | Sequence[str] = ""
    ) -> Float[Tensor, "conditions tokens dim"]:
        """Encode prompts, all in one batch.

        Args:
            text: A prompt, or one for each image.
            negative_text: What to avoid: a text for all images, or one for each. Without classifier-free guidance it
                is not used.

        Returns:
            The encoded prompts; with classifier-free guidance the negative ones first.

        Raises:
            AssertionError: If there are several negative texts, but not as many as prompts.
            TypeError: If an argument is neither a text nor a list of them.
            ValueError: If there is no prompt.

        Warns:
            UserWarning: If a text is too long, with what of it was cut off.
        """
        return encode_prompts(self.clip_text_encoder, text, negative_text, self.classifier_free_guidance)

    def compute_conditions(
        self, text: str | Sequence[str], negative_text: str | Sequence[str] = "", *, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        return {"clip_text_embedding": self.compute_clip_text_embedding(text, negative_text)}

    def set_unet_context(self, *, timestep: Tensor, clip_text_embedding: Tensor, **_: Tensor) -> None:
        """Give the U-Net the timestep and the encoded prompts."""
        self.unet.set_timestep(timestep)
        self.unet.set_clip_text_embedding(clip_text_embedding)


class StableDiffusion_1_Inpainting(StableDiffusion_1):
    """Stable Diffusion 1.5 trained to fill a mask: its U-Net sees the mask and the image around it.

    The networks are those of the checkpoint `runwayml/stable-diffusion-inpainting`. Call `set_inpainting_conditions`
    before the first step.
    """

    mask_latents: Float[Tensor, "batch 1 height width"] | None
    target_image_latents: Float[Tensor, "batch 4 height width"] | None

    def __init__(
        self,
        unet: SD1UNet | None = None,
        lda: LatentDiffusionAutoencoder | None = None,
        clip_text_encoder: CLIPTextEncoder | None = None,
        solver: Solver | None = None,
        device: Device | str = "cpu",
        dtype: DType = torch.float32,
    ) -> None:
        """Bring the parts of the model together. See `StableDiffusion_1`; the U-Net has nine input channels."""
        super().__init__(
            unet=unet, lda=lda, clip_text_encoder=clip_text_encoder, solver=solver, device=device, dtype=dtype
        )
        # Buffers, so that they move with the model; not part of its state.
        self.register_buffer("mask_latents", None, persistent=False)
        self.register_buffer("target_image_latents", None, persistent=False)

    @staticmethod
    def _make_unet(device: Device | str, dtype: DType) -> SD1UNet:
        return SD1UNet(in_channels=9, device=device, dtype=dtype)

    @torch.no_grad()
    def set_inpainting_conditions(
        self,
        target_image: Image.Image | Sequence[Image.Image],
        mask: Image.Image | Sequence[Image.Image],
        latents_size: tuple[int, int] | None = None,
    ) -> tuple[Float[Tensor, "batch 1 height width"], Float[Tensor, "batch 4 height width"]]:
        """Set what to paint into, and where.

        Args:
            target_image: An image, or one for each item of the batch, all of one size.
            mask: White where to paint, black where to keep the image; of the size of the image. One for each image.
            latents_size: The height and width of the latents (default: an eighth of those of the image).

        Returns:
            The masks, 0 or 1, and the encoded images without what the masks cover.

        Raises:
            TypeError: If they are no images.
            ValueError: If there are not as many masks as images, or two sizes differ.
        """
        images, masks = as_images("target_image", target_image), as_images("mask", mask)
        if len(images) != len(masks):
            raise ValueError(f"mask must hold one mask for each image, got {len(masks)} for {len(images)}")
        sizes = {item.size for item in (*images, *masks)}
        if len(sizes) > 1:
            raise ValueError(f"target_image and mask must have one size (width, height), got {sorted(sizes)}")
        width, height = sizes.pop()
        if latents_size is None:
            latents_size = (height // 8, width // 8)
        elif tuple(latents_size) != (height // 8, width // 8):
            raise ValueError(
                f"latents_size must be {(height // 8, width // 8)} for images of {height}x{width} pixels,"
                f" got {latents_size}"
            )
        covered = images_to_tensor([item.convert("L") for item in masks], device=self.device) > 0.5
        covered = covered.to(self.dtype)
        pixels = images_to_tensor([item.convert("RGB") for item in images], device=self.device, dtype=self.dtype)
        latents = self.lda.encode((2 * pixels - 1) * (1 - covered))
        mask_latents = interpolate(covered, torch.Size(latents_size))
        self.target_image_latents, self.mask_latents = latents, mask_latents
        return mask_latents, latents

    def concatenate_condition(
        self, latents: Float[Tensor, "batch 4 height width"]
    ) -> Float[Tensor, "batch 9 height width"]:
        """Append the mask and the encoded image.

        Raises:
            AssertionError: If they are not set.
            ValueError: If they are for images of another size, or for several that are not those of the batch.
        """
        batch, _, height, width = latents.shape
        conditions = self._appended(batch, height, width)
        return torch.cat((latents, *(item.expand(batch, -1, -1, -1) for item in conditions)), dim=1)

    def _own_size(self) -> tuple[int, int]:
        if self.mask_latents is None:
            return super()._own_size()
        height, width = self.mask_latents.shape[2:]
        return 8 * height, 8 * width

    def _appended(self, batch: int, height: int, width: int) -> Sequence[Tensor]:
        if self.mask_latents is None or self.target_image_latents is None:
            raise AssertionError("call set_inpainting_conditions before the first step")
        count, _, *size = self.mask_latents.shape
        if size != [height, width] or count not in (1, batch):
            raise ValueError(
                f"the conditions are for {size[0] * 8}x{size[1] * 8} pixels and {count} images,"
                f" x for {height * 8}x{width * 8} and {batch}"
            )
        return self.mask_latents, self.target_image_latents
