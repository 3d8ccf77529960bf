"""The LoRAs of a diffusion model removed, merged into the weights of their layers, and taken out of them."""

from __future__ import annotations

from torch import device as Device

from refiners.fluxion.adapters.lora import LayerUpdate, LoraAdapter
from refiners.fluxion.bulk import collections_paused
from refiners.foundationals.latent_diffusion.lora_weights import ReadableLoras


class MergeableLoras(ReadableLoras):
    """Remove, merge and unmerge the LoRAs of a diffusion model.

    Args:
        target: The model.

    Raises:
        TypeError: If it is another kind of object.
    """

    # --- remove -------------------------------------------------------------------------------------------------------

    def remove_loras(self, *names: str) -> None:
        """Remove LoRAs; a layer without any other is what it was before.

        Raises:
            ValueError: If there is none of a name; nothing was removed.
        """
        self._check_names(names)
        self._merged.unmerge(names)
        self._remove(set(names))

    def remove_all(self) -> None:
        """Remove all LoRAs, also those that were not added by this manager."""
        self._merged.unmerge(self._merged.names)
        for name in list(self._schedules.by_name):
            self._schedules.set(name, None)
        with collections_paused():
            for adapter in self.lora_adapters:
                _dissolve(adapter)
        self._order.clear()

    def _remove(self, names: set[str]) -> None:
        for name in names:
            self._schedules.set(name, None)
        with collections_paused():
            for adapter in self.lora_adapters:
                own = {child.name for child in adapter if isinstance(child, LayerUpdate)}
                if own and own <= names:
                    _dissolve(adapter)
                    continue
                for name in own & names:
                    adapter.remove_lora(name)
        self._order = [name for name in self._order if name not in names]

    # --- merge --------------------------------------------------------------------------------------------------------

    def merge(self, *names: str, keep_on: Device | str | None = None) -> None:
        """Put LoRAs into the weights of their layers, where they cost nothing; see `MergedLoras`.

        They keep their names and multipliers: a new multiplier changes the weights at once. The weights as they were
        are kept beside.

        Args:
            names: Which (default: all).
            keep_on: Where the weights as they were are kept (default: on the device of each); `"cpu"` saves memory of
                a GPU.

        Raises:
            ValueError: If there is none of a name, or one cannot be merged; nothing was changed.
        """
        self._check_names(names)
        merged = self.merged_names
        wanted = [name for name in names or self.names if name not in merged]
        if scheduled := [name for name in wanted if name in self._schedules.by_name]:
            raise ValueError(f"LoRA {scheduled[0]!r} has another multiplier at each step: it cannot be merged")
        self._merged.keep_on = keep_on
        self._merged.merge(wanted)

    def unmerge(self, *names: str) -> None:
        """Take LoRAs out of the weights, which are then bit for bit what they were, and attach them again.

        Args:
            names: Which (default: all).

        Raises:
            ValueError: If there is none of a name; nothing was changed.
        """
        self._check_names(names)
        self._merged.unmerge(names or self._merged.names)


def _dissolve(adapter: LoraAdapter) -> None:
    """Eject an adapter and take its updates out: no reference goes around in a circle, and their memory is free."""
    adapter.eject()
    for update in [child for child in adapter if isinstance(child, LayerUpdate)]:
        adapter.remove(update)
