"""Public files of LoRAs and other updates of layers: resolved by name, inspected, read."""

from refiners.conversion.lora.loading import Scope, attach_lora
from refiners.conversion.lora.metadata import lora_metadata
from refiners.conversion.lora.names import Part
from refiners.conversion.lora.plan import LoraPlan, Update, plan_lora
from refiners.conversion.lora.reading import read_updates
from refiners.conversion.lora.replacing import replace_lora
from refiners.conversion.lora.report import LoraReport, inspect_lora
from refiners.conversion.lora.saving import save_lora
from refiners.conversion.lora.settings import LoraSettings
from refiners.conversion.lora.spelling import LoraFormat
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
    "lora_metadata",
    "plan_lora",
    "read_updates",
    "replace_lora",
    "save_lora",
    "targets_of",
]
