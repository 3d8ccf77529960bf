"""Measure what LoRAs cost: to attach, to exchange and to scale them, and in each step, next to diffusers and PEFT."""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusion import Step, make_theirs
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.bench.environment import add_outputs, environment, heading, write
from refiners.bench.measure import Candidate, Measurement, Plan, Summary, compare, time_on_cpu
from refiners.conversion.naming.unet import (
    SD15,
    SDXL,
    DiffusersUNet,
    RefinersSDXLUNet,
    RefinersUNet,
    UNetLayout,
    unet_names,
)
from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors
from refiners.foundationals.clip import CLIPTextEncoderG, CLIPTextEncoderL
from refiners.foundationals.latent_diffusion import (
    DoubleTextEncoder,
    LatentDiffusionModel,
    SD1Autoencoder,
    SD1UNet,
    SDXLAutoencoder,
    SDXLUNet,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

RANK = 16
LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "time_emb_proj", "linear_1", "linear_2"]

SDXL_OF_DIFFUSERS: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}


def linear_layers(unet: fl.Chain, layout: UNetLayout, ours: Any) -> Iterator[tuple[str, fl.Linear]]:
    """Give the linear layers of a U-Net with the names that diffusers has for them."""
    names = zip(unet_names(layout, DiffusersUNet), unet_names(layout, ours), strict=True)
    for theirs, mine in names:
        layer = unet.get_submodule(mine.layer)
        if isinstance(layer, fl.Linear):
            yield theirs.layer, layer


def draw(layers: Iterator[tuple[str, fl.Linear]], seed: int) -> dict[str, Tensor]:
    """Draw a LoRA of bfloat16 as kohya-ss/sd-scripts names it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers:
        key = "lora_unet_" + name.replace(".", "_")
        down = torch.randn(RANK, layer.in_features, generator=generator) / 100
        up = torch.randn(layer.out_features, RANK, generator=generator) / 100
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down.bfloat16(), up.bfloat16()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    return tensors


# --- attach -----------------------------------------------------------------------------------------------------------


def attaching(folder: Path, rounds: int) -> dict[str, Any]:
    """Time what a manager does with a LoRA of the 722 linear layers of the transformers of Stable Diffusion XL."""
    options: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    text = DoubleTextEncoder(CLIPTextEncoderL(**options), CLIPTextEncoderG(**options))
    unet, lda = SDXLUNet(4, **options), SDXLAutoencoder(**options)
    for network in (unet, lda, text):  # the values do not matter, and memory that nobody reads is free
        network.to_empty(device="cpu")
    model = StableDiffusion_XL(unet, lda, text, dtype=torch.bfloat16)
    named = [(name, layer) for name, layer in linear_layers(unet, SDXL, RefinersSDXLUNet) if "transformer" in name]
    named += [
        (name, layer) for name, layer in linear_layers(unet, SDXL, RefinersSDXLUNet) if name.endswith(("in", "out"))
    ]
    named = list(dict(named).items())
    paths = [folder / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        save_to_safetensors(path, draw(iter(named), seed))
    manager = SDLoraManager(model)
    manager.load("a", paths[0])  # with all tables of names
    before = private_memory()
    manager.load("b", paths[1])
    memory = private_memory() - before
    others = load_from_safetensors(paths[1])

    def begin() -> None:
        manager.remove_all()
        manager.load("a", paths[0])

    def begin_with_two() -> None:
        begin()
        manager.load("b", paths[1])

    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "read the file": (begin, paths[0].read_bytes),
        "attach": (manager.remove_all, lambda: manager.load("a", paths[0])),
        "replace by another file": (begin, lambda: manager.replace("a", paths[1])),
        "replace by tensors in memory": (begin, lambda: manager.replace("a", others)),
        "switch from one to another": (begin_with_two, lambda: manager.update_scales({"a": 0.0, "b": 1.0})),
        "list the names": (begin, lambda: manager.names),
        "take out": (begin, manager.remove_all),
    }
    times = {name: timed(before, run, rounds) for name, (before, run) in cases.items()}
    times["attach, diffusers + PEFT"] = their_attaching(folder, draw(iter(named), 0), rounds)
    size = paths[0].stat().st_size
    return {"layers": len(named), "bytes": size, "memory": memory, "seconds": times}


def their_attaching(folder: Path, tensors: Mapping[str, Tensor], rounds: int) -> dict[str, float]:
    """Time what diffusers and PEFT take to load the same updates from a file of their own format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers: Any = import_module("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SDXL_OF_DIFFUSERS).bfloat16()
    unet.to_empty(device="cpu")
    names = {name.replace(".", "_"): name for name, _ in unet.named_modules()}
    theirs: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, role = key.removeprefix("lora_unet_").partition(".")
        if role != "alpha":  # the rank
            side = "lora_A" if role.startswith("lora_down") else "lora_B"
            theirs[f"unet.{names[layer]}.{side}.weight"] = tensor
    path = folder / "diffusers.safetensors"
    save_to_safetensors(path, theirs)

    def begin() -> None:
        if getattr(unet, "peft_config", None):
            unet.delete_adapters("a")

    def attach() -> None:
        unet.load_lora_adapter(load_from_safetensors(path), prefix="unet", adapter_name="a")

    return timed(begin, attach, rounds)


def private_memory() -> int:
    """Give the bytes of this process that no other shares, as Linux counts them."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def timed(before: Callable[[], object], run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Time a call that something must come before."""
    samples: list[float] = []
    for _ in range(rounds + 1):
        before()
        samples.append(time_on_cpu(run)[0])
    return Summary.of(samples[1:])._asdict()


# --- steps ------------------------------------------------------------------------------------------------------------


def model_of(unet: SD1UNet) -> LatentDiffusionModel:
    """Give a model with this U-Net, and nothing else in memory."""
    others = (
        SD1Autoencoder(device="meta").to_empty(device="cpu"),
        CLIPTextEncoderL(device="meta").to_empty(device="cpu"),
    )
    return StableDiffusion_1(unet, *others, dtype=unet.dtype or torch.float32)


def steps(what: Step) -> list[dict[str, Any]]:
    """Time a step without and with LoRAs of all linear layers: ours, then diffusers with PEFT, each in turns."""
    dtype, size, rounds = what
    bare = SD1UNet(4, dtype=dtype).requires_grad_(False)
    files = [draw(linear_layers(bare, SD15, RefinersUNet), seed) for seed in (0, 1)]
    x, text = torch.randn(2, 4, size, size, dtype=dtype), torch.randn(2, 77, 768, dtype=dtype)
    timesteps = torch.arange(900, 0, -30)
    calls = 0

    def runner(unet: SD1UNet) -> Callable[[], Tensor]:
        def run() -> Tensor:
            nonlocal calls
            calls += 1
            unet.set_timestep(timesteps[calls % len(timesteps)].unsqueeze(0))
            unet.set_clip_text_embedding(text)
            return unet(x)

        return run

    candidates = [Candidate("refiners", runner(bare))]
    for name, count, scale in (("one", 1, 1.0), ("two", 2, 1.0), ("one, scale 0", 1, 0.0)):
        unet = bare.structural_copy()
        manager = SDLoraManager(model_of(unet))
        for index in range(count):
            manager.add_loras(str(index), files[index], scale)
        candidates.append(Candidate(f"refiners, {name}", runner(unet)))
    merged = copy.deepcopy(bare)
    manager = SDLoraManager(model_of(merged))
    manager.add_loras("0", files[0])
    manager.merge()
    candidates.append(Candidate("refiners, one merged", runner(merged)))

    plain, adapted = make_theirs(bare, torch.channels_last), make_theirs(bare, torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft: Any = import_module("peft")
        adapted.add_adapter(
            peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR, init_lora_weights="gaussian")
        )
    adapted.to(dtype)
    x_last = x.to(memory_format=torch.channels_last)
    theirs = [
        Candidate(name, lambda unet=unet: unet(x_last, timesteps[3], encoder_hidden_states=text).sample)
        for name, unet in (("diffusers", plain), ("diffusers + PEFT, one", adapted))
    ]
    with torch.no_grad():
        plan = Plan(0, rounds, rounds)
        groups = [compare(group, time_on_cpu, plan, lambda: None) for group in (candidates, theirs)]
    return [entry(what, result) for group in groups for result in group]


def entry(what: Step, result: Measurement) -> dict[str, Any]:
    dtype = str(what.dtype).removeprefix("torch.")
    return {
        "dtype": dtype,
        "size": what.size,
        "name": result.name,
        "time": result.wall._asdict(),
        "ratio": result.ratio,
    }


def table(report: dict[str, Any]) -> str:
    """Lay the report out in Markdown."""
    attached = report["attaching"]
    size = attached["bytes"]
    lines = [
        *heading(report, "diffusers", "peft"),
        f"## A LoRA of {attached['layers']} layers of Stable Diffusion XL",
        "",
        f"Rank {RANK}, bfloat16, a file of {size / 1e6:.0f} MB that is in the cache of the system. Attached, it takes"
        f" {attached['memory'] / 1e6:.0f} MB: {attached['memory'] / size:.2f} times the file.",
        "",
        "| | ms, best / median |",
        "|---|---|",
    ]
    for name, each in attached["seconds"].items():
        lines.append(f"| {name} | {each['best'] * 1e3:.1f} / {each['median'] * 1e3:.1f} |")
    lines += [
        "",
        "## A step of the U-Net of Stable Diffusion 1.5 with LoRAs of all linear layers",
        "",
        f"Rank {RANK}, two samples, as guidance needs. The ratio is to the same library without a LoRA: the median over"
        " the rounds.",
        "",
        "| latents | dtype | | seconds, best / median | ratio |",
        "|---|---|---|---|---|",
    ]
    for each in report["steps"]:
        size, time = each["size"], each["time"]
        lines.append(
            f"| 2x4x{size}x{size} | {each['dtype']} | {each['name']} | {time['best']:.2f} / {time['median']:.2f} |"
            f" {each['ratio']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_outputs(parser)
    parser.add_argument("--rounds", type=int, default=10, help="how often what is no step runs (default: 10)")
    parser.add_argument(
        "--steps",
        nargs="*",
        type=Step.parse,
        default=[Step(torch.float32, 32, 5), Step(torch.bfloat16, 32, 5)],
        metavar="DTYPE:SIZE:ROUNDS",
        help="dtypes, heights of latents, and how often each runs (default: float32:32:5 bfloat16:32:5)",
    )
    arguments = parser.parse_args(argv)
    report = environment("diffusers", "peft")
    with tempfile.TemporaryDirectory() as folder:
        report["attaching"] = attaching(Path(folder), arguments.rounds)
    report["steps"] = [each for step in arguments.steps for each in steps(step)]
    write(report, table, arguments)


if __name__ == "__main__":
    main()
