"""Which layers are matched, which tensors follow, and what is said when they cannot."""

from pathlib import Path

import pytest
import torch
from torch import Size, Tensor, nn

from refiners.conversion.model_converter import TORCH_BASIC_LAYERS, ModelConverter
from refiners.fluxion.utils import load_from_safetensors


class CustomLinear(nn.Linear):
    """A custom type that is also a basic type of torch."""


def make(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def converter_of(source: nn.Module, target: nn.Module, **options: object) -> ModelConverter:
    return ModelConverter(source, target, verbose=False, **options)  # pyright: ignore[reportArgumentType]


def test_the_basic_layers_are_these() -> None:
    names = "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Linear BatchNorm1d BatchNorm2d"
    names += " BatchNorm3d LayerNorm GroupNorm Embedding MaxPool2d AvgPool2d AdaptiveAvgPool2d"
    assert [getattr(nn, name) for name in names.split()] == TORCH_BASIC_LAYERS


def test_a_signature_is_the_type_and_the_shapes() -> None:
    converter = converter_of(nn.Identity(), nn.Identity())
    assert converter.get_module_signature(nn.Linear(2, 3)) == (nn.Linear, (Size([3, 2]), Size([3])))
    assert converter.get_module_signature(nn.MaxPool2d(2)) == (nn.MaxPool2d, ())
    with pytest.raises(AssertionError, match="PReLU is not a basic layer"):
        converter.get_module_signature(nn.PReLU())


def test_both_sides_of_the_custom_mapping_are_basic() -> None:
    converter = converter_of(nn.Identity(), nn.Identity(), custom_layer_mapping={nn.PReLU: nn.Bilinear})
    assert converter.get_module_signature(nn.PReLU()) == (nn.PReLU, (Size([1]),))
    assert converter.get_module_signature(nn.Bilinear(1, 1, 1))[0] is nn.Bilinear


def test_a_custom_type_wins_over_the_type_of_torch_it_derives_from() -> None:
    converter = converter_of(nn.Identity(), nn.Identity(), custom_layer_mapping={CustomLinear: nn.Linear})
    assert converter.get_module_signature(CustomLinear(2, 3))[0] is CustomLinear
    assert converter.get_module_signature(nn.Linear(2, 3))[0] is nn.Linear
    plain = converter_of(nn.Identity(), nn.Identity())
    assert plain.get_module_signature(CustomLinear(2, 3))[0] is nn.Linear


def test_a_custom_type_of_the_source_matches_its_counterpart() -> None:
    source, target = make(CustomLinear(2, 2), nn.Linear(2, 2)), make(nn.Linear(2, 2), nn.Linear(2, 2))
    converter = converter_of(source, target, custom_layer_mapping={CustomLinear: nn.Linear})
    assert converter.run((torch.randn(1, 2),))
    assert converter.get_mapping() == {"0": "0", "1": "1"}


def test_layers_of_a_signature_match_in_execution_order() -> None:
    class Backwards(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            for layer in reversed(list(self)):
                input = layer(input)
            return input

    source, target = make(nn.Linear(2, 2), nn.Linear(2, 2)), Backwards(nn.Linear(2, 2), nn.Linear(2, 2))
    assert converter_of(source, target).map_state_dicts((torch.randn(1, 2),)) == {"1": "0", "0": "1"}


def test_different_counts_of_a_signature_give_none_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    source, target = make(nn.Linear(2, 2), nn.Linear(2, 3)), make(nn.Linear(2, 2), nn.Linear(2, 3))
    source.append(nn.Linear(3, 2))
    assert ModelConverter(source, target).map_state_dicts((torch.randn(1, 2),)) is None
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Linear", "[(2,", "3),", "(2,)]", "1", "0"] in rows
    assert not any("(3," in row for row in rows), "signatures that match are not listed"


def test_buffers_follow_their_layer() -> None:
    source, target = make(nn.BatchNorm1d(4)), make(nn.BatchNorm1d(4))
    source(torch.randn(8, 4))
    assert converter_of(source, target).run((torch.randn(2, 4),))
    assert torch.equal(target[0].running_mean, source[0].running_mean)
    assert target[0].num_batches_tracked == 1


def test_half_leaves_integers_exact(tmp_path: Path) -> None:
    source, target = make(nn.BatchNorm1d(4)), make(nn.BatchNorm1d(4))
    converter = converter_of(source, target)
    assert converter.run((torch.randn(2, 4),))
    path = tmp_path / "weights.safetensors"
    converter.save_to_safetensors(path, half=True)
    tensors = load_from_safetensors(path)
    assert tensors["0.running_mean"].dtype == torch.float16
    assert tensors["0.num_batches_tracked"].dtype == torch.int64


def test_the_model_itself_may_be_the_layer() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    converter = converter_of(source, target)
    assert converter.run((torch.randn(1, 2),))
    assert torch.equal(source.weight, target.weight)
    assert converter.get_mapping() == {"": ""}


def test_a_layer_with_two_names_gets_its_weights_under_both() -> None:
    source, target = make(nn.Linear(2, 2)), make(nn.Linear(2, 2))
    source.append(source[0])
    target.append(target[0])
    assert converter_of(source, target).run((torch.randn(1, 2),))
    assert torch.equal(target[0].weight, source[0].weight)


def test_skipped_layers_take_no_part_and_keep_their_weights() -> None:
    source = make(nn.Linear(2, 2), nn.Linear(2, 2))
    target = make(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    kept = target[1].weight.detach().clone()
    converter = converter_of(source, target, target_keys_to_skip=["1"], skip_output_check=True)
    assert converter.run((torch.randn(1, 2),))
    assert converter.get_mapping() == {"0": "0", "2": "1"}
    assert torch.equal(target[1].weight, kept)
    assert torch.equal(target[2].weight, source[1].weight)


def test_a_layer_brings_along_what_is_inside_it() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x)

    source, target = make(Scaled()), make(nn.Identity(), make(Scaled()))
    nn.init.constant_(source[0].inside.weight, 7.0)
    converter = converter_of(source, target, custom_layer_mapping={Scaled: Scaled}, skip_init_check=True)
    assert converter.run((torch.randn(1, 2),))
    assert target[1][0].inside.weight.item() == 7.0


def test_a_skipped_layer_with_two_names_keeps_its_weights_under_both() -> None:
    source, target = make(nn.Linear(2, 2)), make(nn.Linear(2, 2), nn.Linear(2, 2))
    target.append(target[1])
    kept = target[1].weight.detach().clone()
    converter = converter_of(source, target, target_keys_to_skip=["1"], skip_output_check=True)
    assert converter.run((torch.randn(1, 2),))
    assert torch.equal(target[1].weight, kept) and torch.equal(target[0].weight, source[0].weight)


def test_a_layer_with_two_names_counts_once() -> None:
    shared = nn.Linear(2, 2)
    assert not converter_of(make(shared, shared), make(nn.Linear(2, 2), nn.Linear(2, 2)))._run_init_stage()
    assert converter_of(make(shared, shared), make(nn.Linear(2, 2)))._run_init_stage()


def test_names_to_skip_match_exactly() -> None:
    source, target = make(make(nn.Linear(2, 2))), make(nn.Linear(2, 2))
    x = (torch.randn(1, 2),)
    assert converter_of(source, target, source_keys_to_skip=["0"]).map_state_dicts(x) == {"0": "0.0"}
    assert converter_of(source, target, source_keys_to_skip=["0.0"]).map_state_dicts(x) is None


def test_a_target_layer_that_did_not_run_is_named() -> None:
    class Partial(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[0](input)

    source, target = make(nn.Linear(2, 2)), Partial(nn.Linear(2, 2), nn.Linear(5, 5))
    x = (torch.randn(1, 2),)
    with pytest.raises(KeyError, match=r"'1.weight' of the target has no counterpart"):
        converter_of(source, target, skip_init_check=True).run(x)
    assert converter_of(source, target, target_keys_to_skip=["1"]).run(x)


def test_a_tensor_that_the_source_lacks_is_named() -> None:
    source, target = make(nn.BatchNorm1d(4, track_running_stats=False)), make(nn.BatchNorm1d(4))
    with pytest.raises(KeyError, match="source has no '0.running_mean', the counterpart of '0.running_mean'"):
        converter_of(source, target).run((torch.randn(2, 4),))


def test_a_parameter_of_the_model_itself_is_named() -> None:
    source, target = make(nn.Linear(2, 2)), make(nn.Linear(2, 2))
    target.register_parameter("gain", nn.Parameter(torch.zeros(1)))
    with pytest.raises(KeyError, match="'gain' of the target has no counterpart"):
        converter_of(source, target).run((torch.randn(1, 2),))


def test_a_state_dict_is_converted_without_its_models() -> None:
    source = {"x.weight": torch.ones(1), "x.bias": torch.zeros(1), "y.z.weight": torch.full((1,), 2.0)}
    target = {"a.b.weight": torch.empty(1), "c.weight": torch.empty(1), "c.bias": torch.empty(1)}
    converted = ModelConverter._convert_state_dict(
        source_state_dict=source, target_state_dict=target, state_dict_mapping={"c": "x", "a.b": "y.z"}
    )
    assert list(converted) == list(target)
    assert converted["a.b.weight"] is source["y.z.weight"]
    assert converted["c.weight"] is source["x.weight"] and converted["c.bias"] is source["x.bias"]
    with pytest.raises(KeyError, match=r"'a.b.weight' of the target has no counterpart"):
        ModelConverter._convert_state_dict(source, target, {"c": "x"})
