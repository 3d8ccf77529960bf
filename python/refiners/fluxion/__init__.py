"""Trees of layers, the contexts that cross them, and the adapters that change them."""

from refiners.fluxion.utils import load_from_safetensors, manual_seed, norm, pad, save_to_safetensors

__all__ = ["load_from_safetensors", "manual_seed", "norm", "pad", "save_to_safetensors"]
