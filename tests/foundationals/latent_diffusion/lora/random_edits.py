"""Random edits of a model: LoRAs of all kinds, merged and not, among adapters of users; and what it must compute."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_models import State, layers_of, make_tiny, output_of, roots_of
from update_files import Drawn, NoSuchFile, choose, draw_updates, tensors_of, write
from update_kinds import KINDS
from user_adapters import Around, Beside, Control, OfAttention, Within

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.text_encoder import TransformerLayer
from refiners.foundationals.latent_diffusion import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock, CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.unet import ResidualBlock

FORMAT = "kohya, names of diffusers"
PLACES: Mapping[type[Any], tuple[type[fl.Chain], ...]] = {
    Around: (CrossAttentionBlock, CrossAttentionBlock2d, ResidualBlock, TransformerLayer, fl.Attention),
    Beside: (CrossAttentionBlock, CrossAttentionBlock2d, TransformerLayer),
    Within: (CrossAttentionBlock, TransformerLayer, fl.Attention),
    OfAttention: (fl.Attention,),
}
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the norm of the difference; bfloat16 is not compared
MOST_LORAS = 4


class Lora(NamedTuple):
    """What is attached under a name."""

    updates: list[Drawn]
    scale: float


class Injected(NamedTuple):
    """An adapter, and where it stands: at the network, and the path of its target there."""

    adapter: Any
    place: tuple[str, str]


def chains_of(model: LatentDiffusionModel) -> dict[tuple[str, str], fl.Chain]:
    """Give the chains of the networks by their paths, while nothing is injected."""
    trees = {"unet": model.unet, "text_encoder": model.clip_text_encoder}
    named = ((network, path, each) for network, tree in trees.items() for path, each in tree.named_modules())
    return {(network, path): each for network, path, each in named if isinstance(each, fl.Chain)}


def draw_sets(model: LatentDiffusionModel) -> list[list[Drawn]]:
    """Draw two sets of updates of each kind, of all networks of a model: all first ones, then all others."""
    layers = layers_of(model)
    sets: list[list[Drawn]] = []
    kinds = [kind for kind in KINDS if kind != "IA3 of PEFT"]
    for number, kind in enumerate(kinds * 2):
        sets.append([])
        for network in roots_of(model):
            try:
                chosen = choose(layers, FORMAT, kind, network, 3)
            except NoSuchFile:
                continue
            sets[-1] += draw_updates(FORMAT, kind, chosen, seed=number)
    return sets


class Reference:
    """A model that is made anew for each comparison: pristine weights and the sums of all changes, in float64.

    Args:
        kind: Of which structure.
    """

    def __init__(self, kind: str) -> None:
        self.sets = draw_sets(make_tiny(kind))
        self.model = make_tiny(kind).to(dtype=torch.float64)
        self.chains = chains_of(self.model)
        self.state = State(self.model)
        self.layers = {(each.network, each.path): each.module for each in layers_of(self.model)}
        self.pristine = [(each, each.detach().clone()) for each in self._parameters()]

    def _parameters(self) -> Iterable[torch.nn.Parameter]:
        return [*self.model.unet.parameters(), *self.model.clip_text_encoder.parameters()]

    @torch.no_grad()
    def outputs(
        self, loras: Iterable[Lora], adapters: Iterable[Injected], networks: Iterable[str] = ("unet", "text_encoder")
    ) -> dict[str, torch.Tensor]:
        """Compute what networks give with LoRAs and adapters."""
        for lora in loras:
            for update in lora.updates:
                layer = self.layers[update.layer.network, update.layer.path]
                for name, change in update.change().items():
                    getattr(layer, name).add_(change, alpha=lora.scale)
        injected = [type(each.adapter)(self.chains[each.place]).inject() for each in adapters]
        found = {network: output_of(self.model, network) for network in networks}
        for adapter in reversed(injected):
            adapter.eject()
        for parameter, value in self.pristine:
            parameter.copy_(value)
        if injected:
            self.state.check()
        return found


class Pristine:
    """What a model is before the first edit, and must be after the last.

    Args:
        model: The model.
    """

    def __init__(self, model: LatentDiffusionModel) -> None:
        self.model = model
        self.chains = chains_of(model)
        self.outputs = {network: output_of(model, network) for network in ("unet", "text_encoder")}
        self.contexts = self._contexts()
        self.state = State(model)

    def check(self) -> None:
        """Assert that the model is what it was, and computes the same, bit for bit."""
        self.state.check()
        assert self._contexts() == self.contexts, "other contexts"
        for network, before in self.outputs.items():
            assert torch.equal(output_of(self.model, network), before), f"the {network} computes something else"

    def _contexts(self) -> list[dict[str, list[str]]]:
        """List the names and entries that each chain knows."""
        return [
            {name: sorted(entries) for name, entries in chain.provider.contexts.items()}
            for chain in self.chains.values()
        ]


class RandomEdits:
    """Edits a model, and knows what it must compute.

    Args:
        pristine: The model.
        sets: The updates that may be attached.
        seed: Which edits.
        folder: Where files are written.
    """

    def __init__(self, pristine: Pristine, sets: list[list[Drawn]], seed: int, folder: Path) -> None:
        self.pristine = pristine
        self.sets = sets
        self.folder = folder
        self.rng = random.Random(seed)
        self.manager = SDLoraManager(pristine.model)
        self.loras: dict[str, Lora] = {}
        self.merged: set[str] = set()
        self.adapters: list[Injected] = []
        self.done: list[str] = []

    def run(self, steps: int, reference: Reference) -> None:
        """Make some edits, compare at two of them, undo all in a random order, and compare again."""
        edits = [self.add, self.add, self.add_wrong, self.remove, self.scale, self.merge, self.unmerge, self.reload]
        edits += [self.merge, self.inject, self.inject, self.eject, self.replace]
        looked_at = self.rng.sample(range(steps), 2)
        for step in range(steps):
            self.rng.choice(edits)()
            if step in looked_at:
                assert self.manager.names == list(self.loras)
                assert set(self.manager.merged_names) == self.merged
                self.compare(reference)
        while self.loras or self.adapters:
            self.rng.choice([self.remove, self.unmerge, self.eject])()
        assert self.manager.names == [] == self.manager.lora_adapters
        self.pristine.check()

    def compare(self, reference: Reference) -> None:
        """Compare what the model gives with what it must give."""
        model = self.pristine.model
        bound = BOUNDS.get(model.unet.dtype)
        for network, expected in reference.outputs(self.loras.values(), self.adapters).items() if bound else ():
            error = ((output_of(model, network).double() - expected).norm() / expected.norm()).item()
            assert error <= bound, f"the {network} is off by {error:.1e}"

    # --- edits --------------------------------------------------------------------------------------------------------

    def add(self) -> None:
        if len(self.loras) == MOST_LORAS:
            return
        name = next(name for name in "abcdefgh" if name not in self.loras)
        lora = Lora(self.rng.choice(self.sets), self.rng.choice((1.0, 0.5, -0.3, 0.0)))
        if self.rng.random() < 0.5:
            tensors = tensors_of(FORMAT, lora.updates)[0]
            done = self._attempt(f"add {name}", lambda: self.manager.add_loras(name, tensors, lora.scale))
        else:
            path = write(self.folder / "x.safetensors", FORMAT, lora.updates)
            done = self._attempt(f"load {name}", lambda: self.manager.load(name, path, lora.scale))
        if done:
            self.loras[name] = lora

    def add_wrong(self) -> None:
        tensors = tensors_of(FORMAT, self.rng.choice(self.sets))[0]
        key = self.rng.choice([key for key in tensors if not key.endswith("on_input")])
        value = self.rng.choice((torch.ones(3, 5, 7), tensors[key] * torch.nan, torch.ones(0)))
        assert not self._attempt("add wrong", lambda: self.manager.add_loras("w", {**tensors, key: value}), key)

    def remove(self) -> None:
        names = self._some(self.loras)
        if names and self._attempt(f"remove {names}", lambda: self.manager.remove_loras(*names)):
            self.merged -= set(names)
            for name in names:
                del self.loras[name]

    def scale(self) -> None:
        scales = {name: self.rng.choice((0.7, -0.2, 0.0)) for name in self._some(self.loras)}
        as_tensors = self.rng.random() < 0.3
        given = {name: torch.tensor(scale) if as_tensors else scale for name, scale in scales.items()}
        self._attempt(f"scale {scales}", lambda: self.manager.update_scales(given), "never")
        for name in scales:
            self.loras[name] = self.loras[name]._replace(scale=float(given[name]))

    def merge(self) -> None:
        names = self._some(name for name in self.loras if name not in self.merged)
        if names and self._attempt(f"merge {names}", lambda: self.manager.merge(*names)):
            self.merged |= set(names)
        self._check_counts()

    def unmerge(self) -> None:
        names = self._some(sorted(self.merged))
        if names and self._attempt(f"unmerge {names}", lambda: self.manager.unmerge(*names)):
            self.merged -= set(names)
        self._check_counts()

    def reload(self) -> None:
        names = [name for name in self.loras if name not in self.merged]
        if not names:
            return
        name, path = self.rng.choice(names), self.folder / "saved.safetensors"
        lora = self.loras.pop(name)
        self.manager.save(name, path)
        self.manager.remove_loras(name)
        if self._attempt(f"reload {name}", lambda: self.manager.load(name, path, lora.scale)):
            self.loras[name] = lora

    def replace(self) -> None:
        names = [name for name in self.loras if name not in self.merged]
        if not names:
            return
        name = self.rng.choice(names)
        before = self.loras[name]
        index = next((i for i, each in enumerate(self.sets) if each is before.updates), 0)
        twin = self.sets[(index + len(self.sets) // 2) % len(self.sets)]  # of the same layers and shapes
        updates = twin if self.rng.random() < 0.7 else self.rng.choice(self.sets)
        tensors = tensors_of(FORMAT, updates)[0]
        parameters = [parameter for lora in self.manager.get_loras_by_name(name) for parameter in lora.parameters()]
        if self._attempt(f"replace {name}", lambda: self.manager.replace(name, tensors)):
            self.loras[name] = before._replace(updates=updates)
            now = [parameter for lora in self.manager.get_loras_by_name(name) for parameter in lora.parameters()]
            if {*map(id, now)} == {*map(id, parameters)}:
                self.done.append("rewrite")

    def inject(self) -> None:
        kind = self.rng.choice([*PLACES, *PLACES, Control])
        found = [("unet", "")] if kind is Control else self._places(PLACES[kind])
        place = self.rng.choice(found)
        alone = kind in (Control, OfAttention)
        if not (alone and any(type(each.adapter) is kind and each.place == place for each in self.adapters)):
            self.adapters.append(Injected(kind(self.pristine.chains[place]).inject(), place))
            self.done.append(f"inject {kind.__name__} at {place}")

    def eject(self) -> None:
        if self.adapters:
            injected = self.adapters.pop(self.rng.randrange(len(self.adapters)))
            injected.adapter.eject()
            self.done.append(f"eject {type(injected.adapter).__name__} at {injected.place}")

    def _check_counts(self) -> None:
        """Assert that every update is attached or merged."""
        counts = {name: len(self.manager.get_loras_by_name(name)) for name in self.loras}
        assert counts == {name: len(lora.updates) for name, lora in self.loras.items()}, counts

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _attempt(self, what: str, edit: Callable[[], object], expected: str = "is made of the weight") -> bool:
        """Make an edit, which may be refused for one reason: the model must be as it was then, as comparisons show."""
        refusal = ""
        try:
            edit()
        except ValueError as error:
            refusal = str(error)
        assert not refusal or what == "add wrong" or re.search(expected, refusal), f"{what}: {refusal}"
        self.done.append(f"refused: {what}" if refusal else what)
        return not refusal

    def _some(self, names: Iterable[str]) -> list[str]:
        known = list(names)
        return self.rng.sample(known, self.rng.randrange(1, len(known) + 1)) if known else []

    def _places(self, kinds: tuple[type[fl.Chain], ...]) -> list[tuple[str, str]]:
        return [place for place, chain in self.pristine.chains.items() if isinstance(chain, kinds)]

    def counts(self) -> Counter[str]:
        """Count the edits by their first words."""
        return Counter(each.split()[0] for each in self.done)
