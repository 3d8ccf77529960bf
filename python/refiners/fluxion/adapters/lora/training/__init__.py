"""Training of low-rank updates: fresh ones for any chain, what they begin with, and how fast they learn."""

from refiners.fluxion.adapters.lora.training.fresh import add_trainable_loras
from refiners.fluxion.adapters.lora.training.initialisation import Initialisation
from refiners.fluxion.adapters.lora.training.learning_rates import lora_plus_groups
from refiners.fluxion.adapters.lora.training.trainable import TrainableLora
from refiners.fluxion.adapters.lora.training.trainable_layers import TrainableConv2dLora, TrainableLinearLora
from refiners.fluxion.adapters.lora.training.trainable_loras import TrainableLoras

__all__ = [
    "Initialisation",
    "TrainableConv2dLora",
    "TrainableLinearLora",
    "TrainableLora",
    "TrainableLoras",
    "add_trainable_loras",
    "lora_plus_groups",
]
