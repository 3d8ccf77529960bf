"""Small models of the published topologies, what they are called with, and what they are compared with."""

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
from torch.utils._python_dispatch import TorchDispatchMode

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.tree import ModuleTree
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1UNet
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLUNet

DATA = Path(__file__).parents[2] / "data" / "latent_diffusion"


@dataclass
class Layout:
    """What a model must look like."""

    shapes: dict[str, tuple[int, ...]]
    tree: list[str]

    def check_shapes(self, model: fl.Module) -> None:
        assert {key: tuple(weight.shape) for key, weight in model.state_dict().items()} == self.shapes

    def check_tree(self, model: fl.Module, but: str = "") -> None:
        """Compare the printed trees, without what matches a regular expression."""
        drawn = ModuleTree(model).draw().split("\n")
        assert [outline(line, but) for line in drawn] == [outline(line, but) for line in self.tree]


def outline(line: str, but: str) -> str:
    """Keep of a line of a tree its depth, class, arguments and number of repetitions; not where the weights are."""
    line = re.sub(r"(, )?device=\w+", "", line)
    line = re.sub(but, "", line) if but else line
    return re.sub(r"Lambda\(.*\)", "Lambda", line)  # the name of a function is nobody's business


@pytest.fixture(scope="session")
def layouts() -> dict[str, Layout]:
    raw = json.loads(gzip.decompress((DATA / "layouts.json.gz").read_bytes()))
    return {
        name: Layout({key: tuple(shape) for key, shape in entry["shapes"].items()}, entry["tree"])
        for name, entry in raw.items()
    }


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Any]:
    """Read a file of what the models are compared with."""
    return lambda name: json.loads((DATA / name).read_text())


def make_sd1_unet(in_channels: int = 4, **options: Any) -> SD1UNet:
    sizes = {"channels": (16, 32, 64, 64), "text_embedding_dim": 24, "num_attention_heads": 4, "num_groups": 8}
    return SD1UNet(in_channels, **(sizes | options))


def make_sdxl_unet(in_channels: int = 4, **options: Any) -> SDXLUNet:
    sizes = {
        "channels": (16, 32, 64),
        "text_embedding_dim": 24,
        "pooled_text_embedding_dim": 20,
        "num_attention_layers": (0, 1, 2),
        "head_dim": 8,
        "time_ids_embedding_dim": 6,
        "num_groups": 8,
    }
    return SDXLUNet(in_channels, **(sizes | options))


MakeUNet = Callable[..., Any]


@pytest.fixture(params=[make_sd1_unet, make_sdxl_unet], ids=["sd1", "sdxl"])
def make_unet(request: pytest.FixtureRequest) -> MakeUNet:
    """Each of the U-Nets, small, one test each."""
    return request.param


@pytest.fixture
def make_small_sd1_unet() -> MakeUNet:
    return make_sd1_unet


@pytest.fixture
def make_small_sdxl_unet() -> MakeUNet:
    return make_sdxl_unet


TIME_IDS = [[64, 48, 0, 3, 32, 40], [7, 1, 2, 90, 5, 6], [11, 12, 13, 14, 15, 16]]


def draw_conditions(unet: Any, batch: int, timestep: Tensor | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(3, 7, unet.text_embedding_dim, generator=generator)
    conditions = {
        "timestep": torch.tensor([501]) if timestep is None else timestep,
        "clip_text_embedding": text[:batch],
    }
    if isinstance(unet, SDXLUNet):
        conditions["time_ids"] = torch.tensor(TIME_IDS)[:batch]
        pooled = torch.randn(3, unet.pooled_text_embedding_dim, generator=generator)
        conditions["pooled_text_embedding"] = pooled[:batch]
    return {
        key: value.to(unet.dtype) if value.is_floating_point() and key != "timestep" else value
        for key, value in conditions.items()
    }


@pytest.fixture(scope="session")
def conditions() -> Callable[..., dict[str, Tensor]]:
    """Draw what a U-Net is told besides its input, by the name of the entry; the same each time."""
    return draw_conditions


@pytest.fixture(scope="session")
def call() -> Callable[..., Tensor]:
    """Set all conditions of a U-Net, and call it without recording gradients."""

    def call_unet(unet: Any, x: Tensor, timestep: Tensor | None = None, **others: Tensor) -> Tensor:
        for key, value in {**draw_conditions(unet, x.shape[0], timestep), **others}.items():
            getattr(unet, f"set_{key}")(value)
        with torch.no_grad():
            return unet(x)

    return call_unet


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


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """The norm of the error, over that of the expected result."""

    def relative_error(y: Tensor, expected: Tensor) -> float:
        assert y.shape == expected.shape
        return ((y - expected).double().norm() / expected.double().norm()).item()

    return relative_error


class Copies(TorchDispatchMode):
    """Collect the operations that copy an image or a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = any(word in str(func) for word in ("clone", "copy", "contiguous"))
        if copies and args[0].is_floating_point() and args[0].ndim > 2:
            self.found.append(f"{func} {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def copies() -> Copies:
    """A context that collects, as `found`, the copies that are made within."""
    return Copies()
