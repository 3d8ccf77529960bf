"""Updates of every kind, drawn at random, and what they change by their formulas, written out in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

import refiners.fluxion.layers as fl

RANK = 2
Roles = dict[str, Tensor]


class Draw:
    """Draws tensors; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator) * 0.3


# --- tensors ----------------------------------------------------------------------------------------------------------


def _pair(draw: Draw, layer: Any) -> Roles:
    weight = layer.weight
    ones = (1,) * (weight.ndim - 2)
    return {"down": draw(RANK, *weight.shape[1:]), "up": draw(len(weight), RANK, *ones)}


def _three(draw: Draw, layer: Any) -> Roles:
    weight = layer.weight
    mid = draw(RANK, RANK, *weight.shape[2:])
    return {"down": draw(RANK, weight.shape[1], 1, 1), "mid": mid, "up": draw(len(weight), RANK, 1, 1)}


def _hadamard(draw: Draw, layer: Any) -> Roles:
    rows, columns = len(layer.weight), layer.weight[0].numel()
    sizes = {"w1_a": (rows, RANK), "w1_b": (RANK, columns), "w2_a": (rows, RANK), "w2_b": (RANK, columns)}
    return {f"hada_{role}": draw(*size) for role, size in sizes.items()}


def _kronecker(draw: Draw, layer: Any) -> Roles:
    weight = layer.weight
    columns = weight.shape[1] // 2 * weight.shape[2:].numel()
    return {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(len(weight) // 2, RANK), "lokr_w2_b": draw(RANK, columns)}


def _decomposed(draw: Draw, layer: Any) -> Roles:
    lengths = layer.weight.detach().flatten(1).norm(dim=1)
    magnitude = (lengths * (1 + draw(*lengths.shape))).float()
    return {**_pair(draw, layer), "dora_scale": magnitude.view(-1, *[1] * (layer.weight.ndim - 1))}


def _difference(draw: Draw, layer: Any) -> Roles:
    return {"diff": draw(*layer.weight.shape)} | ({} if layer.bias is None else {"diff_b": draw(*layer.bias.shape)})


def _norm(draw: Draw, layer: Any) -> Roles:
    return {"w_norm": draw(*layer.weight.shape), "b_norm": draw(*layer.weight.shape)}


def _rescaled(draw: Draw, layer: Any) -> Roles:
    return {"ia3_w": draw(len(layer.weight), 1), "on_input": torch.tensor(False)}


def _rescaled_of_peft(draw: Draw, layer: Any) -> Roles:
    return {"ia3_l": 1 + draw(len(layer.weight), 1)}


class Kind(NamedTuple):
    """A kind of update.

    Attributes:
        draw: Draws its tensors for a layer.
        fits: Whether a layer can have one.
        has_rank: Whether its product is multiplied by alpha / rank.
    """

    draw: Callable[[Draw, Any], Roles]
    fits: Callable[[Any], bool]
    has_rank: bool = True


def _is_matrix(layer: Any) -> bool:
    return isinstance(layer, fl.Linear)


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, fl.Conv2d)


def _is_large_convolution(layer: Any) -> bool:
    return isinstance(layer, fl.Conv2d) and layer.kernel_size != (1, 1)


def _is_either(layer: Any) -> bool:
    return isinstance(layer, (fl.Linear, fl.Conv2d))


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, (fl.LayerNorm, fl.GroupNorm))


KINDS: Mapping[str, Kind] = {
    "LoRA": Kind(_pair, _is_matrix),
    "LoCon": Kind(_pair, _is_convolution),
    "LoCon with a core": Kind(_three, _is_large_convolution),
    "LoHa": Kind(_hadamard, _is_either),
    "LoKr": Kind(_kronecker, _is_either),
    "DoRA": Kind(_decomposed, _is_either),
    "difference": Kind(_difference, _is_either, has_rank=False),
    "difference of norms": Kind(_norm, _is_norm, has_rank=False),
    "IA3": Kind(_rescaled, _is_matrix, has_rank=False),
    "IA3 of PEFT": Kind(_rescaled_of_peft, _is_matrix, has_rank=False),
}

# --- formulas ---------------------------------------------------------------------------------------------------------


def change_of(tensors: Mapping[str, Tensor], scale: float, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Compute the changes of the parameters of a layer, in float64, of whatever tensors are there.

    LoRA is [[arXiv:2106.09685]](https://arxiv.org/abs/2106.09685), equation 3; LoHa
    [[arXiv:2108.06098]](https://arxiv.org/abs/2108.06098), equation 1; LoKr
    [[arXiv:2309.14859]](https://arxiv.org/abs/2309.14859), section 3.3; DoRA
    [[arXiv:2402.09353]](https://arxiv.org/abs/2402.09353), equation 5; IA³
    [[arXiv:2205.05638]](https://arxiv.org/abs/2205.05638), section 3.3.
    """
    t = {role: tensor.double() for role, tensor in tensors.items()}
    w = weight.double()
    rows = [-1] + [1] * (w.ndim - 1)
    columns = [1, -1, *rows[2:]]
    if "on_input" in t:
        return {"weight": w * t["ia3_w"].view(columns if t["on_input"].any() else rows)}
    if "ia3_l" in t:
        factors, of_inputs = t["ia3_l"] - 1, t["ia3_l"].ndim > 1 and len(t["ia3_l"]) == 1
        changes = {"weight": w * factors.view(columns if of_inputs else rows)}
        return changes if bias is None or of_inputs else {**changes, "bias": bias.double() * factors.flatten()}
    if differences := {role: t[role] for role in ("diff", "diff_b", "w_norm", "b_norm") if role in t}:
        names = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
        shapes = {"weight": w.shape, "bias": w.shape[:1]}
        return {names[role]: value.view(shapes[names[role]]) for role, value in differences.items()}
    change = scale * _product(t, w)
    magnitude = next((t[role] for role in ("dora_scale", "magnitude") if role in t), None)
    if magnitude is not None:
        is_of_columns = magnitude.ndim > 1 and len(magnitude) == 1 != len(w) and magnitude.shape[1] == w.shape[1]
        axes = [axis for axis in range(w.ndim) if axis != int(is_of_columns)]
        lengths = (w + change).square().sum(dim=axes, keepdim=True).sqrt()
        change = magnitude.reshape(lengths.shape) * (w + change) / lengths - w
    return {"weight": change}


def _product(t: Mapping[str, Tensor], w: Tensor) -> Tensor:
    if "hada_w1_a" in t:
        return ((t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])).view_as(w)
    if any(role.startswith("lokr_") for role in t):
        small = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        large = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        large = large.reshape(len(w) // len(small), -1, *w.shape[2:])
        return torch.kron(small.view(*small.shape, *[1] * (w.ndim - 2)), large)
    up, down = t["up"].flatten(1), t["down"]
    if "mid" in t:
        core = t["mid"].view(*t["mid"].shape[:2], -1)
        return torch.einsum("or,rsk,si->oik", up, core, down.flatten(1)).reshape(w.shape)
    return (up @ down.flatten(1)).view_as(w)
