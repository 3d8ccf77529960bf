"""Weights of Control-LoRAs for Stable Diffusion XL."""

import torch
from torch import dtype as DType

from refiners.conversion.naming.control import control_lora_keys
from refiners.conversion.utils import AnyDict, Conversion, Hub, TensorDict, WeightRecipe


class ControlLoraConversion(Conversion):
    """A conversion of a Control-LoRA: pairs of matrices `up` and `down`, and whole layers. Normalizations are left out.

    Args:
        original: The published file.
        converted: The file to write, and its hash.
        dtype: The dtype of the result.
    """

    def __init__(self, original: Hub, converted: Hub, dtype: DType = torch.float32) -> None:
        super().__init__(original, converted, WeightRecipe(control_lora_keys()), dtype)

    def translate(self, state_dict: AnyDict) -> TensorDict:
        translated: TensorDict = {}
        for key, tensor in self.filter_tensors_state_dict(state_dict).items():
            name, _, kind = key.rpartition(".")
            target = self.recipe.key_map.get(name)
            if target is not None and (kind in ("up", "down")) == target.startswith("ControlLora."):
                translated[f"{target}.{kind}"] = tensor
        return translated


canny = ControlLoraConversion(
    original=Hub(
        repo_id="lllyasviel/misc",
        filename="control-lora-canny-rank128.safetensors",
        revision="71f7a66a7affe631c64af469fe647217d422cac0",
        expected_sha256="56389dbb245ca44de91d662529bd4298abc55ce2318f60bc19454fb72ff68247",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.controllora.canny",
        filename="model.safetensors",
        expected_sha256="6edfa742e2b5191ce357fb559e236652b004feea490c4f1277b30abc9804321f",
    ),
)

cpds = ControlLoraConversion(
    original=Hub(
        repo_id="lllyasviel/misc",
        filename="fooocus_xl_cpds_128.safetensors",
        revision="71f7a66a7affe631c64af469fe647217d422cac0",
        expected_sha256="eec3fd8209a65b41341ea9f415de66909c97b30fb4d20965b3304e8e5251c2f1",
    ),
    converted=Hub(
        repo_id="refiners/sdxl.controllora.cpds",
        filename="model.safetensors",
        expected_sha256="9a3b2a86f32e4747e98531b0af8b59a804391b538949a0dd85263722b6e64db0",
    ),
)
