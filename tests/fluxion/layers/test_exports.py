"""What `import refiners.fluxion.layers as fl` offers."""

import importlib

import pytest

import refiners.fluxion.layers as fl

NAMES = (
    "Embedding LayerNorm GroupNorm LayerNorm2d InstanceNorm2d Activation GeLU GeLUApproximation GLU SiLU ReLU Sigmoid "
    "Attention ScaledDotProductAttention SelfAttention SelfAttention2d Identity GetArg Flatten Unflatten Transpose "
    "Permute Squeeze Unsqueeze Reshape Slicing Parameter Sin Cos Multiply Matmul Lambda Return Sum Residual Chain "
    "UseContext SetContext Parallel Distribute Passthrough Breakpoint Concatenate Conv2d ConvTranspose2d Linear "
    "MultiLinear Downsample Upsample Module WeightedModule ContextModule Interpolate ReflectionPad2d PixelUnshuffle "
    "Converter MaxPool1d MaxPool2d"
)

MODULES = {
    "refiners.fluxion": "norm manual_seed save_to_safetensors load_from_safetensors pad",
    "refiners.fluxion.context": "Context Contexts ContextProvider",
    "refiners.fluxion.layers.module": "Module ContextModule WeightedModule ModuleTree TreeNode BasicType",
    "refiners.fluxion.layers.chain": "Chain UseContext SetContext Lambda Parallel Distribute Passthrough Sum Residual"
    " Concatenate Matmul Return Breakpoint ChainError ReturnException generate_unique_names structural_copy",
    "refiners.fluxion.layers.attentions": "scaled_dot_product_attention scaled_dot_product_attention_non_optimized"
    " ScaledDotProductAttention Attention SelfAttention SelfAttention2d",
    "refiners.fluxion.adapters": "Adapter Lora LinearLora Conv2dLora LoraAdapter auto_attach_loras",
    "refiners.fluxion.adapters.adapter": "Adapter lookup_top_adapter",
    "refiners.fluxion.adapters.lora": "Lora LinearLora Conv2dLora LoraAdapter auto_attach_loras",
    "refiners.conversion.model_converter": "ModelConverter ConversionStage ModuleArgsDict ModelTypeShape"
    " TORCH_BASIC_LAYERS",
}


def test_the_layers_export_exactly_their_names() -> None:
    assert sorted(fl.__all__) == sorted(NAMES.split())
    assert all(hasattr(fl, name) for name in NAMES.split())


@pytest.mark.parametrize("module", MODULES)
def test_names_are_where_programs_import_them_from(module: str) -> None:
    imported = importlib.import_module(module)
    assert [name for name in MODULES[module].split() if not hasattr(imported, name)] == []


def test_the_adapter_class_is_reached_through_the_layers_too() -> None:
    from refiners.fluxion.adapters import Adapter

    assert fl.Adapter is Adapter
    with pytest.raises(AttributeError, match="no attribute 'Adaptor'"):
        getattr(fl, "Adap" + "tor")
