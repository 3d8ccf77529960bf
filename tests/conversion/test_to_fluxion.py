"""Converting a model of torch to a chain, which is what the converter is for."""

from pathlib import Path

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.conversion.model_converter import ModelConverter


class Source(nn.Module):
    """A small image model as other libraries write them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.block = nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8), "norm": nn.LayerNorm(8)})
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor, *, scale: float = 1.0) -> Tensor:
        x = self.norm(self.stem(image)).flatten(2).transpose(1, 2)
        update = self.block["down"](nn.functional.silu(self.block["up"](self.block["norm"](x))))
        return self.head(self.drop(x + update).mean(dim=1)) * scale


class Target(fl.Chain):
    """The same as a chain."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(
            fl.Conv2d(3, 8, kernel_size=3, padding=1, device=device),
            fl.GroupNorm(8, num_groups=2, device=device),
            fl.Flatten(2),
            fl.Transpose(1, 2),
            fl.Residual(
                fl.LayerNorm(8, device=device),
                fl.Linear(8, 16, device=device),
                fl.SiLU(),
                fl.Linear(16, 8, device=device),
            ),
            fl.Lambda(lambda x: x.mean(dim=1)),
            fl.Linear(8, 5, device=device),
        )


def test_a_model_becomes_a_chain(tmp_path: Path) -> None:
    source, target = Source(), Target()
    x = torch.randn(2, 3, 6, 6)
    converter = ModelConverter(source, target, verbose=False)
    assert converter.run({"image": x}, (x,))
    assert converter.get_mapping() == {
        "Conv2d": "stem",
        "GroupNorm": "norm",
        "Residual.LayerNorm": "block.norm",
        "Residual.Linear_1": "block.up",
        "Residual.Linear_2": "block.down",
        "Linear": "head",
    }
    expected = source.eval()(x)
    torch.testing.assert_close(target(x), expected)
    converter.save_to_safetensors(tmp_path / "target.safetensors")
    loaded = Target(device="meta").load_from_safetensors(tmp_path / "target.safetensors")
    assert torch.equal(loaded(x), target(x))


def test_a_leaf_placed_twice_is_converted_under_both_keys() -> None:
    shared, twice = nn.Linear(4, 4), fl.Linear(4, 4)
    source, target = nn.Sequential(shared, nn.ReLU(), shared), fl.Chain(twice, fl.ReLU(), twice)
    converter = ModelConverter(source, target, verbose=False)
    assert converter.run((torch.randn(1, 4),))
    assert list(target.state_dict()) == ["Linear_1.weight", "Linear_1.bias", "Linear_2.weight", "Linear_2.bias"]
    assert torch.equal(twice.weight, shared.weight)


def test_contexts_of_the_chain_are_as_before() -> None:
    class Declaring(fl.Chain):
        def init_context(self) -> dict[str, dict[str, Tensor | None]]:
            return {"net": {"x": None}}

    target = Declaring(fl.SetContext("net", "x"), fl.Linear(4, 4), fl.Sum(fl.Identity(), fl.UseContext("net", "x")))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    source, x = Residual(), torch.randn(1, 4)
    assert ModelConverter(source, target, verbose=False).run((x,))
    assert torch.equal(target(x), source(x)) and target.use_context("net") == {"x": None}
