"""Updates of layers: those of low rank, [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), and relatives."""

from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.attach import auto_attach_loras
from refiners.fluxion.adapters.lora.decomposed import Decomposition
from refiners.fluxion.adapters.lora.factors import LayerChange, LowRankFactors, WeightFactors
from refiners.fluxion.adapters.lora.loha import HadamardFactors
from refiners.fluxion.adapters.lora.lokr import KroneckerFactors
from refiners.fluxion.adapters.lora.lora import Conv2dLora, LinearLora, Lora
from refiners.fluxion.adapters.lora.merge import MergedLoras
from refiners.fluxion.adapters.lora.region import Region
from refiners.fluxion.adapters.lora.rescaled import ChannelFactors
from refiners.fluxion.adapters.lora.update import LayerUpdate, WeightUpdate

__all__ = [
    "ChannelFactors",
    "Conv2dLora",
    "Decomposition",
    "HadamardFactors",
    "KroneckerFactors",
    "LayerChange",
    "LayerUpdate",
    "LinearLora",
    "Lora",
    "LoraAdapter",
    "LowRankFactors",
    "MergedLoras",
    "Region",
    "WeightFactors",
    "WeightUpdate",
    "auto_attach_loras",
]
