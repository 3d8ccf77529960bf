"""One LoRA file does what several do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from refiners.conversion.lora.tools import compose_loras
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import StableDiffusion_1

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NORM = "lora_unet_down_blocks_0_attentions_0_norm"

Write = Callable[..., Path]
Run = Callable[..., Tensor]


def product(path: Path, layer: str = LAYER) -> Tensor:
    tensors = load_file(path)
    down, up = (tensors[f"{layer}.lora_{role}.weight"].double() for role in ("down", "up"))
    return tensors[f"{layer}.alpha"].item() / down.shape[0] * up.flatten(1) @ down.flatten(1)


def two(write: Write) -> dict[Path, float]:
    return {write("a.safetensors"): 0.7, write("b.safetensors", r"attn1|attn2|conv1", rank=3, seed=1): -0.4}


def nearest(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize("format", ["kohya", "diffusers", "refiners"])
def test_cat_is_both(format: Any, write: Write, run: Run, tmp_path: Path) -> None:
    files, out = two(write), tmp_path / "c.safetensors"
    written = compose_loras(files, out, format=format)
    assert {each.rank for each in written.layers} == {2, 3, 5} and all(each.kept is None for each in written.layers)
    both, one, none = run(files), run({out: 1.0}), run({})
    assert (one - both).norm() <= 1e-5 * (both - none).norm()


def test_svd_of_all_ranks_is_cat_and_of_fewer_the_nearest(write: Write, run: Run, tmp_path: Path) -> None:
    files, out = two(write), tmp_path / "c.safetensors"
    compose_loras(files, out, method="svd", rank=5)
    both, none = run(files), run({})
    assert (run({out: 1.0}) - both).norm() <= 1e-5 * (both - none).norm()
    compose_loras(files, out, method="svd", rank=2)
    total = sum(scale * product(file) for file, scale in files.items())
    torch.testing.assert_close(product(out), nearest(total, 2), rtol=1e-5, atol=1e-6)


def test_ties_and_dare_are_of_the_scaled_changes(write: Write, tmp_path: Path) -> None:
    files, out = two(write), tmp_path / "c.safetensors"
    deltas = [scale * product(file) for file, scale in files.items()]
    trimmed = [torch.where(each.abs() >= each.abs().flatten().sort().values[-512], each, 0.0) for each in deltas]
    sign = (trimmed[0] + trimmed[1]).sign()
    agreeing = [torch.where(each.sign() == sign, each, 0.0) for each in trimmed]
    count = sum((each != 0).double() for each in agreeing)
    ties = torch.where(count > 0, sum(agreeing) / count.clamp_min(1), 0.0)
    compose_loras(files, out, method="ties", density=0.5, rank=4)
    torch.testing.assert_close(product(out), nearest(ties, 4), rtol=1e-4, atol=1e-6)

    for file in files:  # one layer, so that its numbers are drawn first
        save_to_safetensors(file, {key: value for key, value in load_file(file).items() if key.startswith(f"{LAYER}.")})
    generator = Generator().manual_seed(7)
    dare = sum(torch.where(torch.rand(32, 32, generator=generator) < 0.5, each / 0.5, 0.0) for each in deltas)
    compose_loras(files, out, method="dare", density=0.5, rank=4, seed=7)
    torch.testing.assert_close(product(out), nearest(dare, 4), rtol=1e-4, atol=1e-6)


def test_a_seed_decides_and_the_random_state_stays(write: Write, tmp_path: Path) -> None:
    files, outs = two(write), [tmp_path / f"{i}.safetensors" for i in range(3)]
    before = torch.get_rng_state()
    for out, seed in zip(outs, (1, 1, 2)):
        compose_loras(files, out, method="dare", density=0.5, rank=4, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()


def test_differences_stay_whole(write: Write, run: Run, tmp_path: Path) -> None:
    files, out = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "c.safetensors"
    for index, file in enumerate(files):
        save_to_safetensors(file, {f"{NORM}.w_norm": torch.randn(32), f"{NORM}.b_norm": torch.full((32,), index + 1.0)})
    compose_loras({files[0]: 2.0, files[1]: 0.5}, out)
    assert torch.equal(load_file(out)[f"{NORM}.b_norm"], torch.full((32,), 3.0))
    scales = {files[0]: 2.0, files[1]: 0.5}
    torch.testing.assert_close(run({out: 1.0}), run(scales), rtol=1e-5, atol=1e-5)


def test_kinds_that_are_products(model: StableDiffusion_1, write: Write, run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "c.safetensors"
    tensors = {
        f"{LAYER}.hada_w{i}_{j}": torch.randn(32, 4) if j == "a" else torch.randn(4, 32) for i in "12" for j in "ab"
    }
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors |= {f"{conv}.lokr_w1": torch.randn(4, 4), f"{conv}.lokr_w2": torch.randn(8, 8, 3, 3)}
    tensors |= {f"{LAYER}.alpha": torch.tensor(1.0)}
    save_to_safetensors(source, {key: 0.3 * value for key, value in tensors.items()})
    files = {source: 0.5, write("b.safetensors"): 1.0}
    compose_loras(files, out, method="svd", rank=32, model=model)
    both, none = run(files), run({})
    assert (run({out: 1.0}) - both).norm() <= 2e-5 * (both - none).norm()
    with pytest.raises(ValueError, match="the matrix of a LoHa has the shape of the weight: give model or checkpoint"):
        compose_loras(files, out, method="svd", rank=32)
    with pytest.raises(ValueError, match="LoHa is no pair of matrices: use another method than 'cat'"):
        compose_loras(files, out, model=model)


def test_mistakes(write: Write, tmp_path: Path) -> None:
    source, out = write("a.safetensors"), tmp_path / "c.safetensors"
    other, whole, dora, small = (tmp_path / f"{name}.safetensors" for name in ("xl", "whole", "dora", "small"))
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_9_attn1_to_q"
    save_to_safetensors(
        other, {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    )
    save_to_safetensors(whole, {f"{LAYER}.diff": torch.ones(32, 32)})
    pair = {f"{LAYER}.lora_down.weight": torch.ones(2, 32), f"{LAYER}.lora_up.weight": torch.ones(32, 2)}
    save_to_safetensors(dora, {**pair, f"{LAYER}.dora_scale": torch.ones(32, 1)})
    save_to_safetensors(small, {**pair, f"{LAYER}.lora_up.weight": torch.ones(16, 2)})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"files": {}}, "files must hold one file at least"),
        ({"files": {source: float("nan")}}, "the multiplier of .* must be finite, got nan"),
        (
            {"files": {source: 1, other: 1}},
            "files must be for one model, got .*a.safetensors for sd1 and .*xl.* for sdxl",
        ),
        ({"files": {source: 1, whole: 1}}, "has a whole difference of unet.*to_q, and .* one in factors"),
        ({"files": {source: 1, dora: 1}}, "DoRA depends on the weight: it cannot be merged"),
        ({"files": {source: 1, small: 1}}, r"change a weight of different shapes: \(32, 32\), \(16, 32\)"),
        ({"method": "mean"}, "method must be one of cat, svd, ties, dare, got 'mean'"),
        ({"rank": 3}, "rank must be given for the method svd or ties or dare, got 3 for 'cat'"),
        ({"method": "svd"}, "rank must be given for the method svd or ties or dare, got None for 'svd'"),
        ({"method": "ties", "rank": 2}, "density must be given for the method ties or dare, got None for 'ties'"),
        ({"method": "ties", "rank": 2, "density": 0.0}, "density must be above 0, and at most 1, got 0.0"),
        ({"method": "dare", "rank": 2, "density": 0.5}, "seed must be given for the method dare"),
        ({"method": "dare", "rank": 2, "density": 0.5, "seed": -1}, "seed must be from 0 to 18446744073709551615"),
        ({"destination": source}, "destination must be another file than what is read"),
    ]
    for changed, message in cases:
        arguments: dict[str, Any] = {"files": {source: 1.0}, "destination": out, **changed}
        with pytest.raises(ValueError, match=message):
            compose_loras(**arguments)
    with pytest.raises(TypeError, match="files must map files to multipliers, got list"):
        compose_loras([source], out)  # pyright: ignore[reportArgumentType]
    assert not out.exists()
