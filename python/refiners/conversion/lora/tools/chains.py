"""Files of `save_loras`, whose layers are those of any chain, of a lower rank."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import device as Device, dtype as DType

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.lora.family import tell_family
from refiners.conversion.lora.keys import split_keys
from refiners.conversion.lora.metadata import lora_metadata, without_stale
from refiners.conversion.lora.no_lora import check_is_no_pipeline
from refiners.conversion.lora.plan import plan_lora
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.spelling import ENDINGS
from refiners.conversion.lora.tools.deltas import pair_of
from refiners.conversion.lora.tools.low_rank import Bound, truncate_product
from refiners.conversion.lora.tools.opened import OpenedLora
from refiners.conversion.lora.tools.written import Progress, WrittenLayer, WrittenLora, rounded_pieces
from refiners.conversion.lora.writer import is_of_a_chain
from refiners.conversion.safetensors_writer import Piece, write_safetensors


@contextmanager
def open_chain_file(path: Path | str) -> Generator[OpenedLora | None]:
    """Open a file of `save_loras` of a chain that is no model of ours; give `None` for others.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a matrix of such a file is missing or wrong.
    """
    check_is_no_pipeline(path)
    with Checkpoint(path) as source:
        entries, rest = split_keys(source.infos)
        if not entries or rest or not is_of_a_chain(entries) or tell_family(entries, source.infos).family is not None:
            yield None
            return
        plan = plan_lora(source, {}, split=(entries, rest))
        if plan.of_status("wrong"):
            raise ValueError(f"{plan.label}: something cannot be attached, nothing was written:\n{plan.problems()}")
        yield OpenedLora(source, plan, {}, None, LoraSettings(), {})


@dataclass(frozen=True)
class ChainResizer:
    """Makes the rank of such a file lower.

    Attributes:
        bound: How much to keep of each layer.
        device: Where to compute.
        dtype: The dtype of the matrices; `None` for that of the source.
        progress: Is told of each layer.
    """

    bound: Bound
    device: Device | str
    dtype: DType | None
    progress: Progress

    def write(self, opened: OpenedLora, path: Path, said: Mapping[str, str]) -> WrittenLora:
        """Write the nearest file of a lower rank, with the same keys."""
        pieces: dict[str, Piece] = {}
        layers: list[WrittenLayer] = []
        for update in opened.plan.updates:
            tensors = opened.read(update, self.device, torch.float64)
            down, up, _ = pair_of(tensors, update)
            pair = truncate_product(down, up * update.scale, self.bound)
            rank = pair.down.shape[0]
            shaped = {
                "down": pair.down.reshape(rank, *tensors["down"].shape[1:]),
                "up": pair.up.reshape(-1, rank, *tensors["up"].shape[2:]),
            }
            made = rounded_pieces(update.name, shaped, self.dtype or opened.dtype(update))
            made["alpha"] = Piece.of(torch.tensor(float(rank), device="cpu"))
            pieces |= {f"{update.name}.{ENDINGS['kohya'][role]}": piece for role, piece in made.items()}
            layers.append(WrittenLayer(update.name, update.kind, rank, pair.kept))
            self.progress(len(layers), len(opened.plan.updates))
        ranks = {each.rank for each in layers}
        dim = ranks.pop() if len(ranks) == 1 else "Dynamic"
        facts = lora_metadata(rank=dim, alpha=dim)
        write_safetensors(path, pieces, {"format": "pt"} | without_stale(opened.source.metadata) | facts | dict(said))
        return WrittenLora(path, "refiners", tuple(layers), {})
