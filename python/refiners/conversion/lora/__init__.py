"""Public files of LoRAs and other updates of layers: resolved by name, inspected, read."""

from refiners.conversion.lora.loading import Scope, attach_lora, read_updates
from refiners.conversion.lora.names import Part
from refiners.conversion.lora.plan import LoraPlan, Update, plan_lora
from refiners.conversion.lora.report import LoraReport, inspect_lora
from refiners.conversion.lora.saving import LoraFormat, save_lora
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.targets import targets_of

__all__ = [
    "LoraFormat",
    "LoraPlan",
    "LoraReport",
    "LoraSettings",
    "Part",
    "Scope",
    "Update",
    "attach_lora",
    "inspect_lora",
    "plan_lora",
    "read_updates",
    "save_lora",
    "targets_of",
]
