"""What diffusers and PEFT make of LoRA files: run as a program, so that its memory is given back."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

PROMPT, NEGATIVE, TIMESTEP = "a cute cat, oil on canvas", "blurry", 501
BASE = "no LoRA"


def latents() -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=Generator().manual_seed(1))


def run_loras(folder: Path, files: Mapping[str, Path], cases: Mapping[str, Mapping[str, float]]) -> dict[str, Tensor]:
    """Compute what text encoders and U-Net give without a LoRA, and with the files of each case at their scales.

    Returns:
        The outputs, by the case and what they are: `"PEFT: noise"`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run_loras(folder, files, cases)


def _run_loras(folder: Path, files: Mapping[str, Path], cases: Mapping[str, Mapping[str, float]]) -> dict[str, Tensor]:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    is_xl = (folder / "text_encoder_2").exists()
    kind = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    options = {} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, **options)
    found = {f"{BASE}: {what}": value for what, value in _outputs(pipeline, is_xl).items()}
    for title, scales in cases.items():
        for name in scales:
            pipeline.load_lora_weights(files[name], adapter_name=name)
        pipeline.set_adapters(list(scales), list(scales.values()))
        found |= {f"{title}: {what}": value for what, value in _outputs(pipeline, is_xl).items()}
        pipeline.unload_lora_weights()
    again = _outputs(pipeline, is_xl)
    assert all(torch.equal(value, found[f"{BASE}: {what}"]) for what, value in again.items())
    return found


@torch.no_grad()
def _outputs(pipeline: Any, is_xl: bool) -> dict[str, Tensor]:
    more: dict[str, Any] = {}
    if is_xl:
        positive, negated, pooled, pooled_negated = pipeline.encode_prompt(PROMPT, negative_prompt=NEGATIVE)
        pooled = torch.cat([pooled_negated, pooled])
        time_ids = torch.tensor([[128, 128, 0, 0, 128, 128]] * 2)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
        found = {"text": torch.cat([negated, positive]), "pooled": pooled}
    else:
        positive, negated = pipeline.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt=NEGATIVE)
        found = {"text": torch.cat([negated, positive])}
    noise = pipeline.unet(latents(), TIMESTEP, encoder_hidden_states=found["text"], **more).sample
    return {**found, "noise": noise}


def run_apart(
    folder: Path, files: Mapping[str, Path], cases: Mapping[str, Mapping[str, float]], out: Path
) -> dict[str, Tensor]:
    """Do so in a process of its own."""
    paths = {name: str(path) for name, path in files.items()}
    order = {"folder": str(folder), "files": paths, "cases": {title: dict(scales) for title, scales in cases.items()}}
    (out / "order.json").write_text(json.dumps(order))
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(out)], check=True)
    return load_file(out / "outputs.safetensors")


def main(out: Path) -> None:
    order = json.loads((out / "order.json").read_text())
    files = {name: Path(path) for name, path in order["files"].items()}
    result = run_loras(Path(order["folder"]), files, order["cases"])
    save_file({key: value.contiguous() for key, value in result.items()}, out / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
