"""Weights of ELLA, which aligns a large language model with Stable Diffusion 1.5."""

import torch
from torch import dtype as DType

from refiners.conversion.naming.adapters import ella_key
from refiners.conversion.utils import AnyDict, Conversion, Hub, TensorDict, WeightRecipe


class ELLAConversion(Conversion):
    """A conversion of ELLA's resampler, in which one tensor holds queries, keys and values.

    Args:
        original: The published file.
        converted: The file to write, and its hash.
        dtype: The dtype of the result.
    """

    def __init__(self, original: Hub, converted: Hub, dtype: DType = torch.float16) -> None:
        super().__init__(original, converted, WeightRecipe({}), dtype)

    def translate(self, state_dict: AnyDict) -> TensorDict:
        translated: TensorDict = {}
        for key, tensor in self.filter_tensors_state_dict(state_dict).items():
            name, separator, kind = key.rpartition(".")
            joint = kind.startswith("in_proj_")  # `in_proj_weight` and `in_proj_bias` have no dot before their kind
            target = ella_key(key if joint or not separator else name) or ella_key(key)
            if target is None:
                continue
            if joint:
                for i, part in enumerate(tensor.chunk(3), start=1):
                    translated[f"{target}.Linear_{i}.{kind.removeprefix('in_proj_')}"] = part
            else:
                translated[target if target.endswith(".weight") else f"{target}.{kind}"] = tensor
        return translated


sd15_t5xl = ELLAConversion(
    original=Hub(
        repo_id="QQGYLab/ELLA",
        filename="ella-sd1.5-tsc-t5xl.safetensors",
        revision="c07675dea7873abe24a4152e1140cf0131c217d2",
        expected_sha256="ca2018e325170d622389b531c0a061eea9d856b80e58e359ed54ade881517417",
    ),
    converted=Hub(
        repo_id="refiners/sd15.ella.tsc_t5xl",
        filename="model.safetensors",
        expected_sha256="ffc368afb97b93792f581d4a75275f4195cf76c225961cce61c3e1ef687df7da",
    ),
)
