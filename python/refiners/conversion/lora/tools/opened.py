"""LoRA files that are opened to be worked on: every update resolved, no tensor read."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, device as Device, dtype as DType

from refiners.conversion.checkpoint import Checkpoint
from refiners.conversion.diffusion import Family
from refiners.conversion.lora.family import tell_family
from refiners.conversion.lora.keys import Role, split_keys
from refiners.conversion.lora.kinds import Kind
from refiners.conversion.lora.kinds.kind import NUMBERS
from refiners.conversion.lora.names import LayerNames, Networks
from refiners.conversion.lora.no_lora import check_is_no_pipeline
from refiners.conversion.lora.plan import LoraPlan, Update, plan_lora
from refiners.conversion.lora.report import check_model
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.spelling import Layer, layers_of
from refiners.conversion.lora.targets import targets_in, targets_of
from refiners.conversion.lora.writing import LayerPieces
from refiners.conversion.safetensors_writer import Piece
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel


@dataclass(frozen=True)
class OpenedLora:
    """A LoRA file.

    Attributes:
        source: Its tensors.
        plan: What each of them is for.
        networks: The networks that it is for.
        family: The model that it is for, where it is told by the file.
        settings: What is known beside the tensors.
        layers: The layers that it has updates of, by the names of these in the file.
    """

    source: Checkpoint
    plan: LoraPlan
    networks: Networks
    family: Family | None
    settings: LoraSettings
    layers: Mapping[str, Layer]

    @property
    def updates(self) -> list[Update]:
        """The updates of layers that have a name, also of those that our models do without."""
        return [update for update in self.plan.updates if update.name in self.layers]

    def check(self, hint: str = "") -> None:
        """Raise `ValueError` if something in the file is not understood, and list it."""
        if not self.plan.is_whole:
            unfit = len(self.plan.of_status("unknown", "wrong", "unsupported"))
            over = f", {len(self.plan.left_over)} keys are left over" if self.plan.left_over else ""
            raise ValueError(
                f"{self.plan.label}: {unfit} of {len(self.plan.updates)} updates are not understood{over}, nothing was"
                f" written:\n{self.plan.problems()}{hint}"
            )

    def pieces(self, update: Update) -> LayerPieces:
        """Give the tensors of an update as the file has them, to be written to another one."""
        # Where alpha is not divided by the rank, the scale says more than the numbers in the file.
        is_plain = update.rank is None or self.settings.divisor(update.name, update.rank) == update.rank
        keys = {role: key for role, key in update.keys.items() if is_plain or role not in NUMBERS}
        pieces = {role: Piece.read(self.source, key) for role, key in keys.items()}
        return LayerPieces(self.layers[update.name], update.kind, pieces, update.rank, update.scale)

    def kind(self, update: Update) -> Kind:
        """Give the kind of an update."""
        return self.plan.kinds[update.name]

    def read(self, update: Update, device: Device | str, dtype: DType) -> dict[Role, Tensor]:
        """Read the tensors of an update but its multipliers.

        Raises:
            ValueError: If one holds numbers that are not finite.
        """
        found: dict[Role, Tensor] = {}
        for role, key in update.keys.items():
            if role not in NUMBERS:
                found[role] = self.source.read(key, device, dtype)
                if not bool(torch.isfinite(found[role]).all()):
                    raise ValueError(f"{self.source.label}: {key} holds numbers that are not finite")
        return found

    def dtype(self, update: Update) -> DType:
        """Give the dtype of the matrices of an update, the widest of them."""
        found = (self.source.infos[key].dtype for role, key in update.keys.items() if role not in NUMBERS)
        return widest(dtype for dtype in found if dtype.is_floating_point)


def widest(dtypes: Generator[DType]) -> DType:
    """Give a dtype that holds the numbers of others: of 16 bits at least."""
    wide: DType | None = None
    for dtype in dtypes:
        own = torch.float16 if dtype.itemsize == 1 else dtype
        wide = own if wide is None else torch.promote_types(wide, own)
    return wide or torch.float32


def networks_of(model: LatentDiffusionModel | None, checkpoint: Path | str | None) -> Networks | None:
    """Give the networks of a model or of a checkpoint, if there is one of them.

    Raises:
        TypeError: If the model is none.
        ValueError: If there are both.
    """
    check_model(model, checkpoint)
    if model is not None:
        return targets_of(model).networks
    return None if checkpoint is None else targets_in(checkpoint)[1]


@contextmanager
def open_lora(path: Path | str, networks: Networks | None) -> Generator[OpenedLora]:
    """Open a LoRA file, or a folder of PEFT, and find what each tensor is for. Nothing is read but multipliers.

    Args:
        path: The file.
        networks: The networks that it is for (default: those of the published model that it names layers of).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no LoRA, or may be for several models.
    """
    check_is_no_pipeline(path)
    with Checkpoint(path) as source:
        settings = LoraSettings.of_file(source.path, source.metadata)
        family: Family | None = None
        split = split_keys(source.infos)
        if networks is None:
            told = tell_family(split[0], source.infos)
            if told.is_of_several:
                raise ValueError(f"{path} has names of layers of several models: give model or checkpoint")
            family, networks = told.family, told.networks
        plan = plan_lora(source, networks, settings, split=split)
        yield OpenedLora(source, plan, networks, family, settings, _named(plan, networks))


def _named(plan: LoraPlan, networks: Networks) -> dict[str, Layer]:
    layers = layers_of(networks)
    names = LayerNames(networks)
    found: dict[str, Layer] = {}
    for update in plan.of_status("fits", "left out"):
        assert update.part is not None
        layer = layers.get((update.part, update.path))
        if layer is None and not update.path:
            published = next(known.published for known in names.find(update.name) if known.published)
            layer = Layer(update.part, "", *published)
        if layer is None:
            raise ValueError(f"{plan.label}: the layer {update.path} of {update.name} has no published name")
        found[update.name] = layer
    return found
