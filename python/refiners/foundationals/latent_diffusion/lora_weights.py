"""The weights of the LoRAs of a diffusion model, given away and written to files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import LayerUpdate, Lora, LoraAdapter
from refiners.fluxion.adapters.lora.places import find_places
from refiners.foundationals.latent_diffusion.lora_scales import WeighedLoras

if TYPE_CHECKING:
    from refiners.conversion.lora import LoraFormat


class ReadableLoras(WeighedLoras):
    """Give the weights of the LoRAs of a diffusion model.

    Args:
        target: The model.

    Raises:
        TypeError: If it is another kind of object.
    """

    def save(
        self,
        name: str,
        path: Path | str,
        /,
        *,
        format: LoraFormat = "kohya",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a LoRA to a file; see `refiners.conversion.lora.save_lora`.

        Args:
            name: Which.
            path: The file to write, of safetensors.
            format: Who is to read it: `"kohya"`, as most programs do, or `"diffusers"`.
            metadata: What to say in the file.

        Raises:
            ValueError: If there is none of this name, it is merged, or it cannot be written; nothing is.
        """
        from refiners.conversion.lora import save_lora

        self._check_names([name])
        if name in self.merged_names:
            raise ValueError(f"LoRA {name!r} is merged: unmerge it first")
        save_lora(self.target, name, path, format=format, metadata=metadata)

    def get_lora_weights(self, name: str, /) -> dict[str, Tensor]:
        """Give the weights of a LoRA, multiplied by alpha / rank of its file.

        `add_loras` takes those of whole blocks. The numbers of others may mean several layers; `save` names each layer.

        Keys are `<path of the chain that holds the layer>.<number>.<class of the layer>.down.weight`, and `.up.weight`,
        where the adapted layers of a chain are numbered from 1.

        Raises:
            ValueError: If there is none of this name, it is merged, or it has updates that are no pairs of matrices.
        """
        self._check_names([name])
        if name in self.merged_names:
            raise ValueError(f"LoRA {name!r} is merged: unmerge it first")
        weights: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for network in (self.unet, self.clip_text_encoder):
            paths = {id(place.layer): path for path, place in find_places(network).items()}
            for adapter in network.layers(LoraAdapter, recurse=True):
                lora = next((each for each in _loras_in(adapter) if each.name == name), None)
                if lora is None:
                    continue
                if not isinstance(lora, Lora):
                    raise ValueError(f"LoRA {name!r} has updates that are not pairs of matrices: {lora.change}")
                own = f"{type(network).__name__}.{paths[id(adapter.target)]}" if id(adapter.target) in paths else None
                parent = (own or adapter.get_path()).rpartition(".")[0]
                counts[parent] = counts.get(parent, 0) + 1
                key = f"{parent}.{counts[parent]}.{type(adapter.target).__name__}"
                down, up = lora.scaled_factors()
                weights |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        return weights


def _loras_in(chain: fl.Chain) -> Iterator[LayerUpdate]:
    return chain.layers(LayerUpdate, recurse=True)
