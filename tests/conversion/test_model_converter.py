"""The stages of a conversion, what may be taken out of it, and what it leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refiners.conversion.model_converter import ConversionStage, ModelConverter
from refiners.fluxion.utils import load_from_safetensors, manual_seed


class SourceScale(nn.Module):
    """A custom weighted layer of the source."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(nn.Linear(1, dim).weight.detach()).reshape(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class TargetScale(nn.Module):
    """The same layer in the target, written differently."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.zeros_(nn.Linear(1, dim).weight.detach()).reshape(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class SourceModel(nn.Module):
    """The model that has the weights; its dropout makes it random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.relu = nn.ReLU()
        self.scale_1 = SourceScale(8)
        self.scale_2 = SourceScale(8)
        self.scale_3 = SourceScale(8)
        self.dropout = nn.Dropout(0.5)
        self.conv = nn.Conv1d(8, 4, 1)
        self.pool = nn.MaxPool1d(2)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale_1(self.relu(self.linear(x)))
        x = self.scale_3(self.scale_2(x))
        x = self.conv(self.dropout(x).unsqueeze(-1).repeat(1, 1, 4))
        return self.flatten(self.pool(x))


class TargetModel(nn.Module):
    """The model that receives them; the order of execution is that of the source, the declarations are not."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Flatten()
        self.c = TargetScale(8)
        self.convolution = nn.Conv1d(8, 4, 1)
        self.a = TargetScale(8)
        self.drop = nn.Dropout(0.5)
        self.pooling = nn.MaxPool1d(2)
        self.b = TargetScale(8)
        self.activation = nn.ReLU()
        self.first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(self.activation(self.first(x)))))
        x = self.convolution(self.drop(x).unsqueeze(-1).repeat(1, 1, 4))
        return self.last(self.pooling(x))


EXPECTED_MAPPING = {
    "first": "linear",
    "a": "scale_1",
    "b": "scale_2",
    "c": "scale_3",
    "convolution": "conv",
}


@pytest.fixture
def converter() -> ModelConverter:
    manual_seed(2)
    mapping: dict[type[nn.Module], type[nn.Module]] = {SourceScale: TargetScale}
    return ModelConverter(SourceModel(), TargetModel(), custom_layer_mapping=mapping, verbose=False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def test_the_stages_run_one_by_one(converter: ModelConverter, x: Tensor) -> None:
    assert converter.stage == ConversionStage.INIT
    assert converter._run_init_stage()
    converter._increment_stage()
    assert converter.stage == ConversionStage.BASIC_LAYERS_MATCH
    assert converter._run_basic_layers_match_stage(source_args=(x,), target_args=None)
    converter._increment_stage()
    assert converter.stage == ConversionStage.SHAPE_AND_LAYERS_MATCH
    assert converter._run_shape_and_layers_match_stage(source_args=(x,), target_args=None)
    converter._increment_stage()
    assert converter.stage == ConversionStage.MODELS_OUTPUT_AGREE


def test_the_values_of_the_stages() -> None:
    assert {stage.name: stage.value for stage in ConversionStage} == {
        "INIT": 1,
        "BASIC_LAYERS_MATCH": 2,
        "SHAPE_AND_LAYERS_MATCH": 3,
        "MODELS_OUTPUT_AGREE": 4,
    }


def test_run_converts_and_the_models_agree(converter: ModelConverter, x: Tensor) -> None:
    assert converter.run((x,))
    assert converter.stage == ConversionStage.MODELS_OUTPUT_AGREE
    source, target = converter.source_model.eval(), converter.target_model.eval()
    assert torch.equal(source(x), target(x))
    assert converter.run((x,)), "running a finished conversion again says so"


def test_run_continues_from_the_stage_it_is_at(
    converter: ModelConverter, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    converter.target_model.register_parameter("gain", nn.Parameter(torch.ones(1)))
    with pytest.raises(KeyError, match="'gain'"):
        converter.run((x,))
    assert converter.stage == ConversionStage.BASIC_LAYERS_MATCH
    del converter.target_model.gain
    converter.verbose = True
    assert converter.run((x,))
    printed = capsys.readouterr().out
    assert "Stage 0 -> 1" not in printed and "Stage 1 -> 2" in printed and "Stage 2 -> 3" in printed


def test_run_succeeds_whatever_the_random_stream(x: Tensor) -> None:
    for seed in range(20):
        manual_seed(seed)
        models = SourceModel().train(), TargetModel().train()
        assert ModelConverter(*models, custom_layer_mapping={SourceScale: TargetScale}, verbose=False).run((x,))


def test_the_mapping_leads_from_target_to_source(converter: ModelConverter, x: Tensor) -> None:
    assert converter.run((x,))
    assert converter.get_mapping() == EXPECTED_MAPPING


def test_the_state_dict_is_that_of_the_target(converter: ModelConverter, x: Tensor) -> None:
    assert converter.run((x,))
    tensors = converter.get_state_dict()
    assert tensors.keys() == TargetModel().state_dict().keys()
    assert torch.equal(tensors["b.weight"], converter.source_model.state_dict()["scale_2.weight"])


def test_saving_keeps_the_tensors_and_the_metadata(converter: ModelConverter, x: Tensor, tmp_path: Path) -> None:
    assert converter.run((x,))
    converter.save_to_safetensors(tmp_path / "full.safetensors", metadata={"source": "here"})
    converter.save_to_safetensors(tmp_path / "half.safetensors", half=True)
    full = load_from_safetensors(tmp_path / "full.safetensors")
    half = load_from_safetensors(tmp_path / "half.safetensors")
    assert full.keys() == half.keys() == converter.get_state_dict().keys()
    for key, value in converter.get_state_dict().items():
        assert torch.equal(full[key], value)
        assert torch.equal(half[key], value.half())
    assert b'"source":"here"' in (tmp_path / "full.safetensors").read_bytes()[:500]


def test_nothing_is_exported_before_the_weights_are_loaded(converter: ModelConverter, tmp_path: Path) -> None:
    for export in (
        converter.get_mapping,
        converter.get_state_dict,
        lambda: converter.save_to_safetensors(tmp_path / "weights.safetensors"),
    ):
        with pytest.raises(ValueError, match="The conversion process is not done yet"):
            export()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("skip_output_check", [False, True])
def test_truth_follows_the_stage(skip_output_check: bool) -> None:
    converter = ModelConverter(nn.Linear(1, 1), nn.Linear(1, 1), skip_output_check=skip_output_check)
    truths: list[bool] = []
    for stage in ConversionStage:
        converter.stage = stage
        truths.append(bool(converter))
    assert truths == ([False, True, True, True] if skip_output_check else [False, False, True, True])


def test_a_failed_comparison_leaves_the_converter_truthy_and_the_stage(x: Tensor) -> None:
    converter = ModelConverter(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)),
        verbose=False,
    )
    assert not converter.run((x,))
    assert converter.stage == ConversionStage.SHAPE_AND_LAYERS_MATCH
    assert bool(converter)
    assert converter.get_mapping() == {"0": "0", "2": "2"}


@pytest.mark.parametrize(("threshold", "agree"), [(1e-5, False), (1e3, True)])
def test_run_compares_with_the_threshold_it_was_given(threshold: float, agree: bool, x: Tensor) -> None:
    source = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    target = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    assert ModelConverter(source, target, threshold=threshold, verbose=False).run((x,)) is agree


def test_without_output_check_the_conversion_ends_once_weights_are_loaded(x: Tensor) -> None:
    source = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    target = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    converter = ModelConverter(source, target, skip_output_check=True, verbose=False)
    assert converter.run((x,))
    assert converter.stage == ConversionStage.SHAPE_AND_LAYERS_MATCH
    assert torch.equal(target[2].weight, source[2].weight)


def test_the_init_stage_counts_basic_layers(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.Sequential(nn.Linear(8, 8))
    converter = ModelConverter(source, target)
    assert not converter.run((x,))
    assert converter.stage == ConversionStage.INIT
    printed = capsys.readouterr().out
    assert "LayerNorm" in printed and "Conversion failed at stage 1" in printed


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_init_stage_refuses_weighted_leaves_without_a_basic_type(
    side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, odd = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.PReLU())
    models = (odd, plain) if side == "source" else (plain, odd)
    assert not ModelConverter(*models)._run_init_stage()
    assert f"'1' of the {side} is a PReLU" in capsys.readouterr().out


def test_the_init_stage_can_be_skipped(x: Tensor) -> None:
    source, target = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    source.add_module("unused", nn.PReLU())
    assert not ModelConverter(source, target, verbose=False).run((x,))
    assert ModelConverter(source, target, skip_init_check=True, verbose=False).run((x,))


def test_an_error_in_the_comparison_is_printed_and_fails_the_stage(
    converter: ModelConverter, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    converter.verbose = True
    assert not converter._run_shape_and_layers_match_stage(source_args=(x[:, :3],), target_args=None)
    assert "RuntimeError" in capsys.readouterr().out


def test_progress_is_printed_only_when_verbose(
    converter: ModelConverter, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converter.run((x,))
    assert capsys.readouterr().out == ""
    converter.verbose, converter.stage = True, ConversionStage.INIT
    assert converter.run((x,))
    printed = capsys.readouterr().out
    assert all(f"Stage {stage} -> {stage + 1} - " in printed for stage in range(3))


def test_repr_names_both_models_and_the_stage(converter: ModelConverter) -> None:
    expected = "ModelConverter(source_model=SourceModel, target_model=TargetModel, stage=ConversionStage.INIT)"
    assert repr(converter) == expected


def test_the_arguments_are_stored_under_their_names() -> None:
    source, target = nn.Linear(1, 1), nn.Linear(1, 1)
    converter = ModelConverter(source, target)
    assert converter.source_model is source and converter.target_model is target
    assert converter.source_keys_to_skip == [] and converter.target_keys_to_skip == []
    assert converter.custom_layer_mapping == {}
    assert converter.threshold == 1e-5
    assert converter.skip_output_check is False and converter.skip_init_check is False and converter.verbose is True
    assert not callable(converter)


def test_importing_the_converter_needs_no_optional_dependency() -> None:
    blocked = ("diffusers", "transformers", "segment_anything", "huggingface_hub", "requests")
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import refiners.conversion.model_converter"
    subprocess.run([sys.executable, "-c", program], check=True)
