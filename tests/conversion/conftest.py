"""Data on published models: the layouts of ours, and the names of their layers elsewhere."""

import gzip
import json
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Size, Tensor, nn

DATA = Path(__file__).parents[1] / "data" / "conversion"


@cache
def load(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@pytest.fixture
def layout_of() -> Callable[[str], dict[str, Size]]:
    """Give the keys and shapes of a published model of ours, by its name."""
    return lambda name: {key: Size(shape) for key, shape in load("layouts")[name].items()}


@pytest.fixture
def key_map_of() -> Callable[[str], dict[str, str]]:
    """Give the names of the layers of an original and ours, by the name of the conversion."""
    return lambda name: dict(load("key_maps")[name])


@pytest.fixture
def registry() -> dict[str, Any]:
    """What is published, by the name of its module and its own."""
    return load("hub_registry")


def module_of(shapes: dict[str, Size], device: str = "meta", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a module with parameters of these keys and shapes, as our models have them."""
    root = nn.Module()
    for key, shape in shapes.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device, dtype=dtype)))
    return root


@pytest.fixture
def make_module() -> Callable[..., nn.Module]:
    """See `module_of`."""
    return module_of


@pytest.fixture
def random_like() -> Callable[[dict[str, Size]], dict[str, Tensor]]:
    """Fill shapes with random numbers."""
    return lambda shapes: {key: torch.randn(shape) for key, shape in shapes.items()}


class Tiny:
    """Models of diffusers and transformers with few channels, and random weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)

    @cached_property
    def unet_sd1(self) -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=48,
            attention_head_dim=4,
            norm_num_groups=8,
            sample_size=8,
        )

    @cached_property
    def unet_sdxl(self) -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
            cross_attention_dim=80,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            sample_size=8,
        )

    @cached_property
    def vae(self) -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
        )

    @cached_property
    def controlnet(self) -> Any:
        from diffusers import ControlNetModel

        return ControlNetModel.from_unet(self.unet_sd1, conditioning_embedding_out_channels=(4, 8, 12, 16))

    def text(self, dim: int, layers: int, projection: bool) -> Any:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        config = CLIPTextConfig(
            vocab_size=99,
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=layers,
            num_attention_heads=4,
            projection_dim=dim,
        )
        return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)

    @cached_property
    def text_1(self) -> Any:
        return self.text(dim=32, layers=3, projection=False)

    @cached_property
    def text_2(self) -> Any:
        return self.text(dim=48, layers=2, projection=True)

    def double_text_state(self) -> dict[str, Tensor]:
        """The tensors of both text encoders, below the names of the folders that diffusers gives them."""
        texts = {"text_encoder/": self.text_1, "text_encoder_2/": self.text_2}
        return {f"{prefix}{key}": value for prefix, model in texts.items() for key, value in model.state_dict().items()}

    @cached_property
    def image(self) -> Any:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=24,
                image_size=16,
                patch_size=8,
            )
        )


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """See `Tiny`; each model is built once."""
    return Tiny()


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a text encoder of transformers as OpenCLIP has it, which joins queries, keys and values."""
    renamed = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    layers = 1 + max(int(key.split(".")[3]) for key in state if ".layers." in key)
    for kind in ("weight", "bias"):
        renamed[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for i in range(layers):
            theirs, ours = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
            joint = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")]
            renamed[f"{ours}.attn.in_proj_{kind}"] = torch.cat(joint)
            for source, target in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                renamed[f"{ours}.{target}.{kind}"] = state[f"{theirs}.{source}.{kind}"]
    return renamed


@pytest.fixture
def to_open_clip() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """See `as_open_clip`."""
    return as_open_clip


@pytest.fixture
def to_ldm(tiny: Tiny) -> Callable[[dict[str, Tensor], Any, Any, Any], dict[str, Tensor]]:
    """Rename weights of diffusers as the original implementation has them: two lists of names, and a prefix."""

    def rename(state: dict[str, Tensor], theirs: Any, ldm: Any, prefix: str) -> dict[str, Tensor]:
        renamed: dict[str, Tensor] = {}
        for source, target in zip(theirs, ldm, strict=True):
            for kind in ("weight", "bias"):
                if source.key(kind) in state:
                    tensor = state[source.key(kind)]
                    if ".attn_1." in target.layer and tensor.ndim == 2:
                        tensor = tensor[:, :, None, None]
                    renamed[prefix + target.key(kind)] = tensor
        return renamed

    return rename
