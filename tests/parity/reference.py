"""What the pipelines of diffusers make of a checkpoint: run as a program, so that its memory is given back."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor


def run_pipeline(folder: Path, case: dict[str, Any]) -> dict[str, Tensor]:
    """Run diffusers' pipeline in float32: the latents after all steps, and the image of the first.

    Args:
        folder: A checkpoint in the format of diffusers.
        case: `kind` ("text", "image" or "inpaint"), `prompt`, `negative`, `steps`, `scale`, `size`, `seeds`, and for
            images `strength` and `init_latents`, for masks `image`, `mask` and `masked_latents`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run_pipeline(folder, case)


def _run_pipeline(folder: Path, case: dict[str, Any]) -> dict[str, Tensor]:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    is_xl = (folder / "text_encoder_2").exists()
    prefix = "StableDiffusionXL" if is_xl else "StableDiffusion"
    name = {"text": "Pipeline", "image": "Img2ImgPipeline", "inpaint": "InpaintPipeline"}[case["kind"]]
    options = {} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, prefix + name).from_pretrained(folder, dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    count = len(case["prompt"])
    height, width = case["size"]
    arguments: dict[str, Any] = {
        "prompt": case["prompt"],
        "negative_prompt": case["negative"],
        "num_inference_steps": case["steps"],
        "guidance_scale": case["scale"],
        "generator": [Generator().manual_seed(seed) for seed in case["seeds"]],
        "output_type": "latent",
    }
    if case["kind"] == "image":
        arguments |= {"image": case["init_latents"].expand(count, -1, -1, -1), "strength": case["strength"]}
    else:
        arguments |= {"height": height, "width": width}
    if case["kind"] == "inpaint":
        arguments |= {"image": case["image"], "mask_image": case["mask"], "strength": 1.0}
        arguments |= {"masked_image_latents": case["masked_latents"].expand(count, -1, -1, -1)}
    if is_xl and case["kind"] == "image":
        arguments |= {"original_size": (height, width), "target_size": (height, width)}
    latents = pipeline(**arguments).images
    with torch.no_grad():
        image = pipeline.vae.decode(latents[:1] / pipeline.vae.config.scaling_factor).sample
    return {"latents": latents, "image": image}


def run_apart(folder: Path, case: dict[str, Any], out: Path) -> dict[str, Tensor]:
    """Run the pipeline in a process of its own."""
    tensors = {key: value.contiguous() for key, value in case.items() if isinstance(value, Tensor)}
    images = {key: value for key, value in case.items() if isinstance(value, Image.Image)}
    rest = {key: value for key, value in case.items() if key not in tensors and key not in images}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "inputs.safetensors")
    for key, image in images.items():
        image.save(out / f"{key}.png")
    (out / "case.json").write_text(json.dumps({"rest": rest, "images": list(images)}))
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder), str(out)], check=True)
    return load_file(out / "outputs.safetensors")


def main(folder: Path, out: Path) -> None:
    content = json.loads((out / "case.json").read_text())
    case: dict[str, Any] = {**content["rest"], **load_file(out / "inputs.safetensors")}
    case |= {key: Image.open(out / f"{key}.png") for key in content["images"]}
    result = run_pipeline(folder, case)
    save_file({key: value.contiguous() for key, value in result.items()}, out / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
