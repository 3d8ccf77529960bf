"""Several LoRA files in one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Generator, Tensor, device as Device, dtype as DType

from refiners.conversion.lora.keys import Role
from refiners.conversion.lora.metadata import check_metadata, lora_metadata
from refiners.conversion.lora.plan import Update
from refiners.conversion.lora.spelling import Layer, LoraFormat
from refiners.conversion.lora.tools.deltas import delta_of, is_sum, is_whole, pair_of
from refiners.conversion.lora.tools.low_rank import Bound, Truncated, check_number, truncate, truncate_product
from refiners.conversion.lora.tools.merging import merge_dare, merge_ties
from refiners.conversion.lora.tools.opened import OpenedLora, networks_of, open_lora, widest
from refiners.conversion.lora.tools.written import (
    Progress,
    WrittenLayer,
    WrittenLora,
    check_dtype,
    check_kinds,
    no_progress,
    pair_pieces,
    rounded_pieces,
)
from refiners.conversion.lora.writing import LayerPieces, check_destination, check_format, write_lora
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel

ComposeMethod: TypeAlias = Literal["cat", "svd", "ties", "dare"]
"""How several updates of a layer become one; see `compose_loras`."""


class _Term(NamedTuple):
    """The update of a layer in one of the files, and its multiplier beside that of the file."""

    opened: OpenedLora
    update: Update
    scale: float


@dataclass(frozen=True)
class _Recipe:
    method: ComposeMethod
    bound: Bound
    density: float
    generator: Generator
    device: Device | str
    dtype: DType | None

    def merge(self, deltas: Sequence[Tensor]) -> Tensor:
        """Merge changes, each with its multiplier."""
        if self.method == "ties":
            return merge_ties(deltas, self.density)
        if self.method == "dare":
            return merge_dare(deltas, self.density, self.generator)
        return torch.stack(list(deltas)).sum(dim=0)

    def dtype_of(self, terms: Sequence[_Term]) -> DType:
        return self.dtype or widest(opened.dtype(update) for opened, update, _ in terms)


def compose_loras(
    files: Mapping[Path, float] | Mapping[str, float],
    destination: Path | str,
    *,
    method: ComposeMethod = "cat",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    format: LoraFormat = "kohya",
    dtype: DType | None = None,
    model: LatentDiffusionModel | None = None,
    checkpoint: Path | str | None = None,
    metadata: Mapping[str, str] | None = None,
    device: Device | str = "cpu",
    progress: Progress | None = None,
) -> WrittenLora:
    """Write one LoRA file that does what several do together.

    Let Δ be what a file adds to the weight of a layer, and s its multiplier:

    - `"cat"`: the sum of all s·Δ, exactly. Matrices are put next to each other, so that ranks add up.
    - `"svd"`: the nearest matrix of a rank to this sum. Of pairs of matrices the sum is not made, see
      `truncate_product`; numbers are in float64 until they are written.
    - `"ties"`: of the matrices s·Δ, the numbers that are largest and agree in their sign; see `merge_ties`, after
      [[arXiv:2306.01708] TIES-Merging](https://arxiv.org/abs/2306.01708). Each layer is trimmed by itself.
    - `"dare"`: the sum of the s·Δ without numbers that are drawn at random; see `merge_dare`, after
      [[arXiv:2311.03099] DARE](https://arxiv.org/abs/2311.03099).

    What the last two give is replaced by the nearest matrix of a rank, in float32. Differences that the files keep
    whole, such as those of norms, are merged number by number in the same way, and stay whole.

    Args:
        files: The multiplier of each file; the files may be of different formats.
        destination: The file to write, of safetensors.
        method: How to merge.
        rank: The rank of each layer, for all methods but `"cat"`.
        density: The share of the numbers to keep, for `"ties"` and `"dare"`.
        seed: Decides which numbers `"dare"` drops. The random state of the process is not touched.
        format: Who is to read the file; see `convert_lora`.
        dtype: The dtype of the file (default: that of the sources).
        model: See `convert_lora`. It must be given for LoHa and LoKr, as the shapes of the weights must be known.
        checkpoint: See `convert_lora`.
        metadata: Texts to save with the tensors; see `lora_metadata`.
        device: Where to compute.
        progress: Is told of each layer.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument has a wrong value, or is missing for the method or given for another one; the files
            are for different models; something in them is not understood, is not finite, or has no tensors in the
            format; or a kind of update cannot be merged (DoRA and IA³, which depend on the weight, and LoHa and LoKr
            by `"cat"`). Nothing is written then.
    """
    _check_files(files)
    recipe = _recipe(method, rank, density, seed, device, dtype)
    check_format(format)
    said = check_metadata(metadata)
    path = check_destination(destination, files, format=format)
    networks = networks_of(model, checkpoint)
    tell = progress or no_progress
    with ExitStack() as stack:
        opened = [(stack.enter_context(open_lora(file, networks)), float(scale)) for file, scale in files.items()]
        first = _check_opened([each for each, _ in opened])
        by_layer: defaultdict[Layer, list[_Term]] = defaultdict(list)
        for each, scale in opened:
            for update in each.updates:
                layer = each.layers[update.name]
                if layer.path or format != "refiners":
                    by_layer[layer].append(_Term(each, update, scale))
        for layer, terms in by_layer.items():
            _check_terms(layer, terms, method)
        written: list[tuple[LayerPieces, WrittenLayer]] = []
        for layer, terms in by_layer.items():
            written.append(_composed(layer, terms, recipe))
            tell(len(written), len(by_layer))
        ranks = {each.rank for _, each in written if each.rank is not None}
        dim = next(iter(ranks)) if len(ranks) == 1 else "Dynamic" if ranks else None
        updates = [pieces for pieces, _ in written]
        check_kinds(updates, format, str(path))
        facts = lora_metadata(base_model=first.family, rank=dim, alpha=dim)
        write_lora(path, updates, first.networks, format, facts | said)
    return WrittenLora(path, format, tuple(each for _, each in written), {})


def _check_files(files: Mapping[Path, float] | Mapping[str, float]) -> None:
    if not isinstance(files, Mapping):
        raise TypeError(f"files must map files to multipliers, got {type(files).__name__}")
    if not files:
        raise ValueError("files must hold one file at least")
    for file, scale in files.items():
        check_number(f"the multiplier of {str(file)!r}", scale)


def _recipe(
    method: ComposeMethod,
    rank: int | None,
    density: float | None,
    seed: int | None,
    device: Device | str,
    dtype: DType | None,
) -> _Recipe:
    """Check that each method has the arguments that it needs, and no others."""
    if method not in get_args(ComposeMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(ComposeMethod))}, got {method!r}")
    for name, value, methods in (
        ("rank", rank, ("svd", "ties", "dare")),
        ("density", density, ("ties", "dare")),
        ("seed", seed, ("dare",)),
    ):
        if (value is not None) != (method in methods):
            raise ValueError(f"{name} must be given for the method {' or '.join(methods)}, got {value} for {method!r}")
    bound = Bound(rank)
    bound.check()
    if density is not None:
        check_number("density", density)
        if not 0 < density <= 1:
            raise ValueError(f"density must be above 0, and at most 1, got {density}")
    if seed is not None:
        check_number("seed", seed, whole=True)
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be from 0 to {2**64 - 1}, got {seed}")
    check_dtype(dtype)
    generator = Generator("cpu")
    if seed is not None:
        generator.manual_seed(seed)
    return _Recipe(method, bound, 1.0 if density is None else density, generator, device, dtype)


def _check_opened(opened: Sequence[OpenedLora]) -> OpenedLora:
    for each in opened:
        each.check()
    first, *others = opened
    for each in others:
        if each.family != first.family:
            raise ValueError(
                f"files must be for one model, got {first.plan.label} for {first.family} and {each.plan.label} for"
                f" {each.family}"
            )
    return first


def _check_terms(layer: Layer, terms: Sequence[_Term], method: ComposeMethod) -> None:
    for opened, update, _ in terms:
        if not is_sum(update):
            raise ValueError(f"{opened.plan.label}: {update.kind} depends on the weight: it cannot be merged ({layer})")
        if method == "cat" and not is_whole(update) and "down" not in update.keys:
            raise ValueError(
                f"{opened.plan.label}: {update.kind} is no pair of matrices: use another method than 'cat' ({layer})"
            )
    whole = [term for term in terms if is_whole(term.update)]
    others = [term for term in terms if not is_whole(term.update)]
    is_matrix = method != "cat" and all(list(term.update.keys) == ["diff"] for term in whole)
    if whole and others and not is_matrix:
        raise ValueError(
            f"{whole[0].opened.plan.label} has a whole difference of {layer}, and {others[0].opened.plan.label} one in"
            f" factors: they cannot be merged by {method!r}"
        )


def _composed(layer: Layer, terms: Sequence[_Term], recipe: _Recipe) -> tuple[LayerPieces, WrittenLayer]:
    dtype = recipe.dtype_of(terms)
    if all(is_whole(update) for _, update, _ in terms):
        pieces = LayerPieces(layer, terms[0].update.kind, rounded_pieces(layer, _whole(terms, recipe), dtype))
        return pieces, WrittenLayer(str(layer), pieces.title)
    is_product = recipe.method in ("cat", "svd") and all("down" in update.keys for _, update, _ in terms)
    pair, kernel = _from_pairs(terms, recipe) if is_product else _from_deltas(terms, recipe)
    pieces = pair_pieces(layer, pair, kernel, dtype)
    return pieces, WrittenLayer(str(layer), pieces.title, pieces.rank, None if recipe.method == "cat" else pair.kept)


def _whole(terms: Sequence[_Term], recipe: _Recipe) -> dict[Role, Tensor]:
    found: defaultdict[Role, list[Tensor]] = defaultdict(list)
    for opened, update, scale in terms:
        for role, tensor in opened.read(update, recipe.device, torch.float32).items():
            found[role].append(tensor * scale)
    for role, tensors in found.items():
        _check_same(terms, role, [tuple(tensor.shape) for tensor in tensors])
    return {role: recipe.merge(tensors) for role, tensors in found.items()}


def _from_pairs(terms: Sequence[_Term], recipe: _Recipe) -> tuple[Truncated, tuple[int, ...]]:
    """Put pairs of matrices next to each other: their sum is one pair of all ranks."""
    pairs = [pair_of(opened.read(update, recipe.device, torch.float64), update) for opened, update, _ in terms]
    _check_same(terms, "weight", [(up.shape[0], down.shape[1], *kernel) for down, up, kernel in pairs])
    down = torch.cat([each for each, _, _ in pairs])
    scaled = [up * (term.update.scale * term.scale) for term, (_, up, _) in zip(terms, pairs)]
    up = torch.cat(scaled, dim=1)
    pair = Truncated(down, up, 1.0) if recipe.method == "cat" else truncate_product(down, up, recipe.bound)
    return pair, pairs[0][2]


def _from_deltas(terms: Sequence[_Term], recipe: _Recipe) -> tuple[Truncated, tuple[int, ...]]:
    deltas = [delta_of(opened, update, recipe.device) for opened, update, _ in terms]
    _check_same(terms, "weight", [(*delta.shape, *kernel) for delta, kernel in deltas])
    merged = recipe.merge([delta * term.scale for term, (delta, _) in zip(terms, deltas)])
    return truncate(merged, recipe.bound), deltas[0][1]


def _check_same(terms: Sequence[_Term], what: str, shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) > 1:
        label = terms[0].opened.layers[terms[0].update.name]
        raise ValueError(f"{label}: the files change a {what} of different shapes: {', '.join(map(str, shapes))}")
