"""Training of low-rank updates: fresh ones for any chain, what they begin with, and how fast they learn."""

from refiners.fluxion.adapters.lora.training.initialisation import Initialisation
from refiners.fluxion.adapters.lora.training.learning_rates import lora_plus_groups
from refiners.fluxion.adapters.lora.training.trainable import TrainableConv2dLora, TrainableLinearLora, TrainableLora
from refiners.fluxion.adapters.lora.training.trainable_loras import TrainableLoras, add_trainable_loras

__all__ = [
    "Initialisation",
    "TrainableConv2dLora",
    "TrainableLinearLora",
    "TrainableLora",
    "TrainableLoras",
    "add_trainable_loras",
    "lora_plus_groups",
]
