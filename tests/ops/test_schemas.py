import torch

import refiners.ops  # noqa: F401

# Raise refiners.ops.library_file.INTERFACE when one of them changes: a library built before must not be called.
ARGUMENTS = "(Tensor x, Tensor weight, Tensor? bias, Tensor[] downs, Tensor[] ups, Tensor scale, Tensor? block=None)"
GROUP_NORM = (
    "(Tensor x, int groups, Tensor? weight=None, Tensor? bias=None, Tensor? add=None,"
    " float eps=1.0000000000000001e-05, bool silu=False)"
)
ATTENTION = (
    "(Tensor query, Tensor key, Tensor value, int num_heads, bool is_causal=False, Tensor? mask=None,"
    " Tensor? bias=None, float? scale=None, Tensor? row_bias=None, Tensor? column_bias=None,"
    " Tensor? second_key=None, Tensor? second_value=None, Tensor? second_scale=None, Tensor? second_mask=None)"
)
CONV2D = (
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? add=None, Tensor? residual=None, int[2] stride=1,"
    " int[2] padding=0, int[2] dilation=1, int groups=1, bool silu=False)"
)
LOW_RANK_CONV2D = "(Tensor x, Tensor down, Tensor up, int[2] stride, int[2] padding, int[2] dilation)"
WEIGHTED_SUM = "(Tensor[] tensors, float[] factors, ScalarType? dtype=None)"
SCHEMAS = {
    "attention": f"refiners::attention{ATTENTION} -> Tensor",
    "_attention_portable": f"refiners::_attention_portable{ATTENTION} -> Tensor",
    "conv2d": f"refiners::conv2d{CONV2D} -> Tensor",
    "_conv2d_portable": f"refiners::_conv2d_portable{CONV2D} -> Tensor",
    "group_norm": f"refiners::group_norm{GROUP_NORM} -> Tensor",
    "_group_norm_portable": f"refiners::_group_norm_portable{GROUP_NORM} -> Tensor",
    "_geglu_portable": "refiners::_geglu_portable(Tensor x, bool tanh=False) -> Tensor",
    "geglu": "refiners::geglu(Tensor x, bool tanh=False) -> Tensor",
    "linear": "refiners::linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    "lora_linear": f"refiners::lora_linear{ARGUMENTS} -> Tensor",
    "_lora_linear_portable": f"refiners::_lora_linear_portable{ARGUMENTS} -> Tensor",
    "_lora_linear_masters": "refiners::_lora_linear_masters"
    + ARGUMENTS.replace(", Tensor? block=None", "")
    + " -> Tensor",
    "_low_rank_conv2d_masters": f"refiners::_low_rank_conv2d_masters{LOW_RANK_CONV2D} -> Tensor",
    "weighted_sum": f"refiners::weighted_sum{WEIGHTED_SUM} -> Tensor",
    "_weighted_sum_portable": f"refiners::_weighted_sum_portable{WEIGHTED_SUM} -> Tensor",
}


def test_the_schemas_are_these():
    found = {name: str(getattr(torch.ops.refiners, name).default._schema) for name in SCHEMAS}
    assert found == SCHEMAS


def test_there_are_no_other_operators():
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("refiners::")}
    assert names == {f"refiners::{name}" for name in SCHEMAS}
