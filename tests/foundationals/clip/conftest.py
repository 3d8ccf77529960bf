"""What the tests of CLIP compare with: committed layouts and tokens, and the models of `transformers`."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.tree import ModuleTree

DATA = Path(__file__).parents[2] / "data" / "clip"


@dataclass
class Layout:
    """What a model must look like."""

    shapes: dict[str, tuple[int, ...]]
    tree: list[str]

    def check(self, model: fl.Module) -> None:
        """Compare the keys and shapes of the weights, and the printed tree, with those of a model."""
        assert {key: tuple(weight.shape) for key, weight in model.state_dict().items()} == self.shapes
        assert [outline(line) for line in ModuleTree(model).draw().split("\n")] == [outline(line) for line in self.tree]


def outline(line: str) -> str:
    """Keep of a line of a tree its depth, class, arguments and number of repetitions; not where the weights are."""
    line = re.sub(r"(, )?device=\w+", "", line)
    return re.sub(r"Lambda\(.*\)", "Lambda", line)  # the name of a function is nobody's business


@pytest.fixture(scope="session")
def layouts() -> dict[str, Layout]:
    raw = json.loads(gzip.decompress((DATA / "layouts.json.gz").read_bytes()))
    return {
        name: Layout({key: tuple(shape) for key, shape in entry["shapes"].items()}, entry["tree"])
        for name, entry in raw.items()
    }


LAYER = {
    "layer_norm1": "Residual_1.LayerNorm",
    "layer_norm2": "Residual_2.LayerNorm",
    "self_attn.q_proj": "Residual_1.SelfAttention.Distribute.Linear_1",
    "self_attn.k_proj": "Residual_1.SelfAttention.Distribute.Linear_2",
    "self_attn.v_proj": "Residual_1.SelfAttention.Distribute.Linear_3",
    "self_attn.out_proj": "Residual_1.SelfAttention.Linear",
    "mlp.fc1": "Residual_2.FeedForward.Linear_1",
    "mlp.fc2": "Residual_2.FeedForward.Linear_2",
}
TEXT = {
    "embeddings.token_embedding": "Sum.TokenEncoder",
    "embeddings.position_embedding": "Sum.PositionalEncoder.Embedding",
    "final_layer_norm": "LayerNorm",
    "text_projection": "Linear",
}
IMAGE = {
    "embeddings.class_embedding": "ViTEmbeddings.Concatenate.ClassToken.Parameter.weight",
    "embeddings.patch_embedding": "ViTEmbeddings.Concatenate.Chain.PatchEncoder.Conv2d",
    "embeddings.position_embedding": "ViTEmbeddings.Residual.PositionalEncoder.Embedding",
    "pre_layrnorm": "LayerNorm_1",
    "post_layernorm": "LayerNorm_2",
    "visual_projection": "Linear",
}


def rename(key: str) -> str:
    """Give the key of a weight of `transformers` as it is here."""
    table, layers = (IMAGE, "Chain.") if key.startswith(("vision_model.", "visual_")) else (TEXT, "")
    key = re.sub(r"^(text|vision)_model\.", "", key)
    layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(\w+)$", key)
    if layer:
        return f"{layers}TransformerLayer_{int(layer[1]) + 1}.{LAYER[layer[2]]}.{layer[3]}"
    if key in table:
        return table[key]
    group, suffix = key.rsplit(".", 1)
    return f"{table[group]}.{suffix}"


def copy_weights(source: nn.Module, target: fl.Module) -> None:
    """Replace the weights of a model by those of its counterpart in `transformers`, which must be as many."""
    weights: dict[str, Tensor] = {}
    for key, weight in source.state_dict().items():
        weights[rename(key)] = weight.unsqueeze(0) if key.endswith("class_embedding") else weight
    target.load_state_dict(weights, assign=True)


@pytest.fixture(scope="session")
def copy_from_transformers() -> Callable[[nn.Module, fl.Module], None]:
    return copy_weights


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module], None]:
    """Draw each weight anew, biases and normalizations too, so that none of them is without effect."""

    def draw(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                if weight.ndim == 1:
                    weight.copy_(weight + 0.1 * noise)
                else:
                    weight.copy_(noise / weight[0].numel() ** 0.5)

    return draw


def relative_error(y: Tensor, expected: Tensor) -> float:
    """The norm of the error, over that of the result."""
    assert y.shape == expected.shape
    return ((y - expected).double().norm() / expected.double().norm()).item()


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    return relative_error


@pytest.fixture(scope="session")
def public_tokenizer() -> Any:
    """The tokenizer of `transformers`, on the merges that are part of the package."""
    from transformers import CLIPTokenizer

    import refiners.foundationals.clip.tokenizer as module

    path = Path(module.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = [tuple(line.split()) for line in gzip.decompress(path.read_bytes()).decode().split("\n")[1:48895]]
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]
    pieces = [*alphabet, *(piece + "</w>" for piece in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {piece: id for id, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
