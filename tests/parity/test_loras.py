"""LoRA files as other libraries write them, attached by name, give what these libraries make of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from lora_files import ldm, text_name
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from refiners.foundationals.latent_diffusion import LatentDiffusionModel, StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

KINDS: dict[str, tuple[type[LatentDiffusionModel], Any]] = {
    "sd15": (StableDiffusion_1, checkpoints.SD15),
    "sdxl": (StableDiffusion_XL, checkpoints.SDXL),
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
PROMPT = "a cute cat, oil on canvas"
Compare = Callable[..., None]


class Pair:
    """A pipeline of diffusers, and the same model of ours."""

    def __init__(self, kind: str, folder: Path) -> None:
        import diffusers
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
        make, _ = KINDS[kind]
        self.is_xl = kind == "sdxl"
        options = {} if self.is_xl else {"safety_checker": None, "requires_safety_checker": False}
        self.kind = diffusers.StableDiffusionXLPipeline if self.is_xl else diffusers.StableDiffusionPipeline
        self.pipeline = self.kind.from_pretrained(folder, dtype=torch.float32, **options)
        self.model = make.from_pretrained(folder)
        self.manager = SDLoraManager(self.model)
        self.texts = ["text_encoder", "text_encoder_2"][: 1 + self.is_xl]
        self.x = torch.randn(2, 4, 8, 10, generator=Generator().manual_seed(1))

    @torch.no_grad()
    def theirs(self) -> dict[str, Tensor]:
        negative = {"negative_prompt": "blurry"}
        if self.is_xl:
            positive, negated, pooled, pooled_negated = self.pipeline.encode_prompt(PROMPT, **negative)
        else:
            positive, negated = self.pipeline.encode_prompt(PROMPT, "cpu", 1, True, **negative)
            pooled = pooled_negated = None
        text = torch.cat([negated, positive])
        more: dict[str, Any] = {}
        found = {"text": text}
        if pooled is not None and pooled_negated is not None:
            found["pooled"] = torch.cat([pooled_negated, pooled])
            time_ids = torch.tensor([[64, 80, 0, 0, 64, 80]] * 2)
            more["added_cond_kwargs"] = {"text_embeds": found["pooled"], "time_ids": time_ids}
        return {**found, "noise": self.pipeline.unet(self.x, 501, encoder_hidden_states=text, **more).sample}

    @torch.no_grad()
    def ours(self) -> dict[str, Tensor]:
        conditions = self.model.compute_conditions(PROMPT, "blurry", size=(64, 80))
        self.model.set_unet_context(timestep=torch.tensor([501]), **conditions)
        found = {"text": conditions["clip_text_embedding"], "noise": self.model.unet(self.x)}
        return found | ({"pooled": conditions["pooled_text_embedding"]} if self.is_xl else {})

    def adapt(self, part: str, seed: int, **settings: Any) -> None:
        """Give a network of theirs random updates, as training does."""
        from peft import LoraConfig

        network = getattr(self.pipeline, part)
        torch.manual_seed(seed)
        network.add_adapter(LoraConfig(init_lora_weights=False, **settings))

    def state(self, part: str) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        return {
            key: value.contiguous() for key, value in get_peft_model_state_dict(getattr(self.pipeline, part)).items()
        }

    def configs(self) -> dict[str, Any]:
        parts = ("unet", *self.texts)
        found = {part: getattr(getattr(self.pipeline, part), "peft_config", None) for part in parts}
        return {f"{part}_lora_adapter_metadata": c["default"].to_dict() for part, c in found.items() if c}

    def save(self, folder: Path, convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> Path:
        """Let diffusers save the updates of all its networks."""
        states = {
            f"{part}_lora_layers": convert(self.state(part))
            for part in ("unet", *self.texts)
            if hasattr(getattr(self.pipeline, part), "peft_config")
        }
        self.kind.save_lora_weights(folder, **states, **self.configs())
        return folder / "pytorch_lora_weights.safetensors"

    def check(self, compare: Compare, what: str) -> None:
        theirs, ours = self.theirs(), self.ours()
        for name, expected in theirs.items():
            compare(f"{what}: {name}", ours[name], expected)

    def reset(self) -> None:
        self.pipeline.unload_lora_weights()
        for part in ("unet", *self.texts):
            if hasattr(getattr(self.pipeline, part), "peft_config"):
                getattr(self.pipeline, part).delete_adapters("default")
        self.manager.remove_all()


@pytest.fixture(scope="module")
def pairs(checkpoints_folder: Path) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def get(kind: str) -> Pair:
        if kind not in made:
            components = checkpoints.small(KINDS[kind][1])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[kind] = Pair(kind, checkpoints.write_folder(checkpoints_folder / f"{kind}_small", components))
        return made[kind]

    return get


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Iterator[Pair]:
    """A pipeline of either kind, without updates before and after."""
    found = pairs(request.param)
    yield found
    found.reset()


def adapt_all(pair: Pair, seed: int = 0, patterns: bool = False, **settings: Any) -> None:
    def of(layer: str) -> dict[str, Any]:
        return {"rank_pattern": {layer: 2}, "alpha_pattern": {layer: 1.3}} if patterns else {}

    targets = [*ATTENTION, *CONVOLUTIONS, "proj_in", "ff.net.0.proj"]
    pair.adapt("unet", seed, target_modules=targets, **of("attn1.to_q"), **settings)
    for text in pair.texts:
        pair.adapt(text, seed + 1, target_modules=TEXT, **of("mlp.fc1"), **settings)


def test_without_updates_both_are_the_same(pair: Pair, compare: Compare) -> None:
    pair.check(compare, "no LoRA")


def test_what_peft_trained_and_diffusers_saved(pair: Pair, tmp_path: Path, compare: Compare) -> None:
    base = pair.ours()["noise"]
    adapt_all(pair, r=4, lora_alpha=2, use_rslora=True, patterns=True)
    plan = pair.manager.load("style", pair.save(tmp_path))
    assert plan.is_whole
    pair.check(compare, "as trained")
    assert (pair.ours()["noise"] - base).norm() > 0.1 * base.norm()


def test_what_diffusers_loads(pair: Pair, tmp_path: Path, compare: Compare) -> None:
    adapt_all(pair, r=4, lora_alpha=8)
    path = pair.save(tmp_path)
    pair.reset()
    pair.pipeline.load_lora_weights(path)
    pair.manager.load("style", path)
    pair.check(compare, "as loaded")


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("dora", [False, True])
def test_what_we_save(format: Any, dora: bool, pair: Pair, tmp_path: Path, compare: Compare) -> None:
    targets = [*ATTENTION, "ff.net.0.proj"] if dora else [*ATTENTION, *CONVOLUTIONS, "ff.net.0.proj"]
    pair.adapt("unet", 0, r=4, lora_alpha=8, target_modules=targets, use_dora=dora)
    for text in pair.texts:
        pair.adapt(text, 1, r=4, lora_alpha=2, target_modules=TEXT)
    pair.manager.load("style", pair.save(tmp_path))
    expected = pair.ours()
    pair.manager.save("style", tmp_path / "ours.safetensors", format=format)
    pair.reset()
    pair.pipeline.load_lora_weights(tmp_path / "ours.safetensors")
    for name, theirs in pair.theirs().items():
        compare(f"saved for {format}: {name}", expected[name], theirs)


def test_the_names_of_old_diffusers(pair: Pair, tmp_path: Path, compare: Compare) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers

    pair.adapt("unet", 0, r=4, lora_alpha=4, target_modules=ATTENTION)
    path = pair.save(tmp_path, convert_state_dict_to_diffusers)
    assert any(key.endswith("to_q.lora.down.weight") for key in load_file(path))
    pair.manager.load("style", path)
    pair.check(compare, "old names")
    pair.manager.remove_all()
    # and those before, of adapted processors of attention
    older = {
        re.sub(r"\.(to_\w+)(?:\.0)?\.lora\.", r".processor.\1_lora.", key.removeprefix("unet.")): value
        for key, value in load_file(path).items()
    }
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight" in older
    assert pair.manager.add_loras("style", older).is_whole
    pair.check(compare, "names of processors")


def test_a_folder_of_peft(pair: Pair, tmp_path: Path, compare: Compare) -> None:
    from peft import LoraConfig, PeftModel

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=[*ATTENTION, "conv1"], init_lora_weights=False)
    wrapped = PeftModel(pair.pipeline.unet, config)
    wrapped.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    pair.manager.load("style", tmp_path)
    pair.check(compare, "PEFT")
    pair.manager.remove_all()
    pair.manager.load("style", tmp_path / "adapter_model.safetensors")
    pair.check(compare, "PEFT, by its file")
    wrapped.unload()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_several_at_once(pair: Pair, tmp_path: Path, compare: Compare) -> None:
    for name, seed in (("one", 0), ("two", 10)):
        adapt_all(pair, seed, r=2 + seed // 5, lora_alpha=4)
        pair.save(tmp_path / name)
        pair.reset()
    for name in ("one", "two"):
        pair.pipeline.load_lora_weights(tmp_path / name, adapter_name=name)
        pair.manager.load(name, tmp_path / name / "pytorch_lora_weights.safetensors")
    pair.pipeline.set_adapters(["one", "two"], [0.7, -0.4])
    pair.manager.update_scales({"one": 0.7, "two": -0.4})
    pair.check(compare, "two LoRAs")


def test_a_part_of_the_layers(pair: Pair, tmp_path: Path, compare: Compare) -> None:
    pair.adapt("unet", 0, r=4, lora_alpha=4, target_modules=r"up_blocks\.1\..*attn2\.to_[kv]")
    path = pair.save(tmp_path)
    assert 0 < len(pair.manager.load("style", path).updates) < 40
    pair.check(compare, "part")


# --- kohya: names and multipliers by its published conventions; the reference is the sum of the weights ---------------


class Kohya:
    """Draw updates of layers of a network of diffusers or transformers, and add them to its weights."""

    def __init__(self, pair: Pair, seed: int = 0) -> None:
        self.pair = pair
        self.tensors: dict[str, Tensor] = {}
        self.generator = Generator().manual_seed(seed)
        self.before: list[tuple[nn.Parameter, Tensor]] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    @torch.no_grad()
    def add(
        self, part: str, pattern: str, spell: Callable[[str], str], way: str = "same", rank: int = 4, alpha: float = 0
    ) -> None:
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part]
        if not self.pair.is_xl:
            prefix = prefix.replace("te1", "te")
        for name, layer in list(getattr(self.pair.pipeline, part).named_modules()):
            if not isinstance(layer, (nn.Linear, nn.Conv2d)) or not re.search(pattern, name):
                continue
            weight, multiplier = layer.weight, alpha or float(torch.randint(1, 9, (), generator=self.generator))
            size = weight.shape[2:] if way != "other" else () if weight.ndim == 4 else (1, 1)
            ones = (1,) * len(size)
            key = prefix + spell(name).replace(".", "_")
            up = self.randn(weight.shape[0], rank, *ones) / rank
            if way == "mid":
                down, mid = self.randn(rank, weight.shape[1], *ones), self.randn(rank, rank, *size) / 5
                self.tensors[f"{key}.lora_mid.weight"] = mid
                both = torch.einsum("or,rshw,si->oihw", up.flatten(1), mid, down.flatten(1))
            else:
                down = self.randn(rank, weight.shape[1], *size) / weight[0].numel() ** 0.5
                both = (up.flatten(1) @ down.flatten(1)).view_as(weight)
            self.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            self.tensors[f"{key}.alpha"] = torch.tensor(multiplier)
            self.before.append((weight, weight.clone()))
            weight += multiplier / rank * both
        assert self.tensors

    def undo(self) -> None:
        for weight, before in reversed(self.before):
            weight.data.copy_(before)


@pytest.fixture
def kohya(pair: Pair) -> Iterator[Kohya]:
    made = Kohya(pair)
    yield made
    made.undo()


@pytest.mark.parametrize("names, way", [("diffusers", "other"), ("ldm", "same")])
def test_kohya(way: str, names: str, pair: Pair, kohya: Kohya, tmp_path: Path, compare: Compare) -> None:
    spell = ldm(pair.is_xl) if names == "ldm" else str
    kohya.add("unet", r"attentions|time_emb|conv_shortcut", spell, way)
    for text in pair.texts:
        kohya.add(text, r"q_proj|k_proj|v_proj|out_proj|fc[12]", text_name)
    save_file(kohya.tensors, tmp_path / "style.safetensors")
    plan = pair.manager.load("style", tmp_path / "style.safetensors")
    assert plan.is_whole and bool(plan.of_status("left out")) == pair.is_xl
    pair.check(compare, f"kohya, {names}, {way}")


@pytest.mark.parametrize("way", ["same", "mid"])
def test_convolutions(way: str, pair: Pair, kohya: Kohya, compare: Compare) -> None:
    kohya.add("unet", r"conv[12]$|samplers\.0\.conv|^conv_in|^conv_out", str, way)
    plan = pair.manager.add_loras("style", kohya.tensors)
    assert {update.kind for update in plan.updates} == {"LoCon"}
    pair.check(compare, f"convolutions, {way}")


def test_kohya_as_diffusers_loads_it(pair: Pair, kohya: Kohya, compare: Compare) -> None:
    kohya.add("unet", r"attentions", str, alpha=2.0)  # diffusers finds no place for alphas that differ
    kohya.undo()
    pair.pipeline.load_lora_weights(dict(kohya.tensors))
    pair.manager.add_loras("style", kohya.tensors)
    pair.check(compare, "kohya, loaded by diffusers")
