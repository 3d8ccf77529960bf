"""Models so small that thousands of cases are quick, their layers by the names of every library, and their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.conversion.naming.unet import (
    SD15,
    SDXL,
    DiffusersUNet,
    LDMUNet,
    RefinersSDXLUNet,
    RefinersUNet,
    unet_names,
)
from refiners.foundationals.clip import CLIPTextEncoder
from refiners.foundationals.clip.text_encoder import TransformerLayer
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

TINY_SD1 = replace(SD15, channels=(8, 16, 16, 16))
TINY_XL = replace(SDXL, channels=(8, 16, 16), depths=(0, 1, 2), middle_depth=2)
_TRANSFORMERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


class Layer(NamedTuple):
    """A layer of a model.

    Attributes:
        network: Its network, as diffusers calls it.
        name: Its name there.
        ldm: Its name in the original implementation of the U-Net; that of transformers in a text encoder.
        path: Its path in our network.
        module: The layer.
        root: The class of our network.
    """

    network: str
    name: str
    ldm: str
    path: str
    module: Any
    root: str


class CLIPTextEncoderL(CLIPTextEncoder):
    """The first text encoder: names of layers have the names of classes."""

    def __init__(self) -> None:
        super().__init__(embedding_dim=8, num_layers=3, num_attention_heads=2, feedforward_dim=24)


class CLIPTextEncoderG(CLIPTextEncoder):
    """The second one."""

    def __init__(self) -> None:
        super().__init__(embedding_dim=16, num_layers=3, num_attention_heads=2, feedforward_dim=48)


def make_tiny(kind: str, seed: int = 0) -> LatentDiffusionModel:
    """Make a model of the structure of `"sd1"` or `"sdxl"`, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "sd1":
            unet = SD1UNet(4, TINY_SD1.channels, text_embedding_dim=8, num_attention_heads=2, num_groups=4)
            autoencoder = SD1Autoencoder(channels=(4, 4, 4, 4), num_groups=2)
            return StableDiffusion_1(unet, autoencoder, CLIPTextEncoderL())
        sizes: Any = {"num_attention_layers": (0, 1, 2), "head_dim": 8, "time_ids_embedding_dim": 8, "num_groups": 4}
        xl = SDXLUNet(4, TINY_XL.channels, text_embedding_dim=24, pooled_text_embedding_dim=16, **sizes)
        autoencoder = SDXLAutoencoder(channels=(4, 4, 4, 4), num_groups=2)
        return StableDiffusion_XL(xl, autoencoder, DoubleTextEncoder(CLIPTextEncoderL(), CLIPTextEncoderG()))


def roots_of(model: LatentDiffusionModel) -> dict[str, fl.Chain]:
    """Give the trees that hold the networks, by what diffusers calls these."""
    texts = ["text_encoder", "text_encoder_2"][: 1 + isinstance(model, StableDiffusion_XL)]
    return {"unet": model.unet} | dict.fromkeys(texts, model.clip_text_encoder)


def layers_of(model: LatentDiffusionModel) -> list[Layer]:
    """List the layers of the U-Net, and those in the transformer layers of the text encoders."""
    is_xl = isinstance(model, StableDiffusion_XL)
    layout, ours = (TINY_XL, RefinersSDXLUNet) if is_xl else (TINY_SD1, RefinersUNet)
    spelled = zip(*(unet_names(layout, library) for library in (DiffusersUNet, LDMUNet, ours)), strict=True)
    found: list[Layer] = []
    for theirs, original, mine in spelled:
        module, root = model.unet.get_submodule(mine.layer), type(model.unet).__name__
        found.append(Layer("unet", theirs.layer, original.layer, mine.layer, module, root))
    return [*found, *_text_layers(model.clip_text_encoder, 2 if is_xl else 3)]


def _text_layers(root: fl.Chain, first: int) -> Iterator[Layer]:
    """List the layers of the text encoders; the first one has a number of transformer layers."""
    paths = {id(module): path for path, module in root.named_modules()}
    for index, block in enumerate(root.layers(TransformerLayer)):
        network, number = ("text_encoder", index) if index < first else ("text_encoder_2", index - first)
        linears, norms = list(block.layers(fl.Linear)), list(block.layers(fl.LayerNorm))
        for part, module in (*zip(_TRANSFORMERS, linears, strict=True), *zip(("layer_norm1", "layer_norm2"), norms)):
            name = f"text_model.encoder.layers.{number}.{part}"
            yield Layer(network, name, name, paths[id(module)], module, type(root).__name__)


@torch.no_grad()
def output_of(model: LatentDiffusionModel, network: str) -> Tensor:
    """Compute what a network gives for one input, always the same."""
    if network != "unet":
        found = model.clip_text_encoder(["a cat", "two dogs on a mat"])
        return torch.cat([each.flatten() for each in found]) if isinstance(found, tuple) else found
    generator, dtype = torch.Generator().manual_seed(0), model.unet.dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    model.unet.set_timestep(torch.tensor([10]))
    if isinstance(model, StableDiffusion_XL):
        model.unet.set_clip_text_embedding(draw(1, 5, 24))
        model.unet.set_pooled_text_embedding(draw(1, 16))
        model.unet.set_time_ids(draw(1, 6))
    else:
        model.unet.set_clip_text_embedding(draw(1, 5, 8))
    return model.unet(draw(1, 4, 8, 8))


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


class State:
    """What a model is: its tree, the very modules in it, its weights, bit for bit, and whoever looks on."""

    def __init__(self, model: LatentDiffusionModel) -> None:
        self._roots = (model.unet, model.clip_text_encoder)
        self._modules = self._named_modules()
        self._weights = {
            path: [(name, each, each.detach().clone()) for name, each in module.named_parameters(recurse=False)]
            for path, module in self._modules
        }
        self._tree = [repr(root) for root in self._roots]

    def _named_modules(self) -> list[tuple[str, nn.Module]]:
        return [(f"{i}.{path}", each) for i, root in enumerate(self._roots) for path, each in root.named_modules()]

    def check(self) -> None:
        """Assert that the model is what it was."""
        modules = self._named_modules()
        assert [(path, id(each)) for path, each in modules] == [(path, id(each)) for path, each in self._modules]
        for path, module in modules:
            state = module.__dict__
            assert not any(state[name] for name in HOOKS), f"hooks at {path}"
            assert "_merged_updates" not in state, f"something is merged at {path}"
            for name, parameter, value in self._weights[path]:
                now = state["_parameters"][name]
                assert now is parameter and torch.equal(now, value), f"another {name} at {path}"

    def check_tree(self) -> None:
        """Assert that the tree reads as it did, and that everyone knows its parent."""
        assert [repr(root) for root in self._roots] == self._tree
        for root in self._roots:
            for chain, parent in root.walk(fl.Chain, recurse=True):
                assert chain.parent is parent, f"{type(chain).__name__} has another parent"
