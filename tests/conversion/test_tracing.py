"""Running models without leaving traces, and comparing what they give."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refiners.conversion.model_converter import ModelConverter, ModuleArgsDict


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of order")


class Pair(nn.Module):
    """Two inputs, one of them keyword-only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return self.linear(x) * scale


def converter_of(source: nn.Module, target: nn.Module, **options: Any) -> ModelConverter:
    return ModelConverter(source, target, **{"verbose": False, **options})


def test_modes_and_hooks_are_restored() -> None:
    source, target = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    source[1].eval()
    target.eval()
    assert converter_of(source, target).run((torch.randn(1, 2),))
    assert [module.training for module in source.modules()] == [True, True, False]
    assert not any(module.training for module in target.modules())
    assert hooks_of(source) == hooks_of(target) == 0


def test_modes_and_hooks_are_restored_when_a_model_raises() -> None:
    source, target = nn.Sequential(nn.Linear(2, 2), Failing()), nn.Sequential(nn.Linear(2, 2), Failing())
    converter = converter_of(source, target)
    with pytest.raises(RuntimeError, match="out of order"):
        converter.map_state_dicts((torch.randn(1, 2),))
    with pytest.raises(RuntimeError, match="out of order"):
        converter.compare_models((torch.randn(1, 2),))
    assert all(module.training for module in source.modules())
    assert hooks_of(source) == hooks_of(target) == 0


def test_models_run_in_evaluation_mode_without_gradients() -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    assert converter_of(nn.Sequential(nn.Linear(2, 2), Spy()), nn.Sequential(nn.Linear(2, 2), Spy())).run(
        (torch.randn(1, 2),)
    )
    assert seen == [(False, False)] * 4


@pytest.mark.parametrize(
    "args",
    [ModuleArgsDict(positional=(torch.ones(1, 2),), keyword={"scale": 2.0}), {"x": torch.ones(1, 2), "scale": 2.0}],
)
def test_arguments_may_be_positional_and_keyword(args: Any) -> None:
    assert converter_of(Pair(), Pair()).run(args)


def test_only_a_dict_with_exactly_the_two_keys_is_split() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, positional: Tensor) -> Tensor:
            return self.linear(positional)

    assert converter_of(Keyword(), Keyword()).run({"positional": torch.ones(1, 2)})


def test_the_target_may_have_its_own_arguments() -> None:
    source, target = nn.Sequential(nn.Linear(2, 2)), Pair()
    assert converter_of(source, target).run((torch.ones(1, 2),), {"x": torch.ones(1, 2), "scale": 1.0})


def test_arguments_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a tuple or a dict, got Tensor"):
        converter_of(nn.Linear(2, 2), nn.Linear(2, 2)).map_state_dicts(torch.ones(1, 2))  # pyright: ignore[reportArgumentType]


def test_the_comparison_names_the_first_layer_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [nn.Linear(2, 2) for _ in range(4)]
    source = nn.Sequential(*layers)
    target = nn.Sequential(layers[0], nn.Linear(2, 2), layers[2], layers[3])
    assert not ModelConverter(source, target).compare_models((torch.randn(1, 2),))
    printed = capsys.readouterr().out
    assert "source: '1', between '0' and '2'" in printed and "target: '1', between '0' and '2'" in printed


def test_the_first_layer_lies_between_the_input_and_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    last = nn.Linear(2, 2)
    source, target = nn.Sequential(nn.Linear(2, 2), last), nn.Sequential(nn.Linear(2, 2), last)
    assert not ModelConverter(source, target).compare_models((torch.randn(1, 2),))
    assert "source: '0', between the input and '1'" in capsys.readouterr().out
    assert not ModelConverter(source[:1], target[:1]).compare_models((torch.randn(1, 2),))
    assert "target: '0', between the input and the output" in capsys.readouterr().out


def test_outputs_of_other_sizes_are_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    linear, x = nn.Linear(2, 2), torch.randn(3, 2)
    assert not ModelConverter(linear, linear).compare_models((x,), (x[:1],))
    assert "shape (3, 2) in the source, (1, 2) in the target" in capsys.readouterr().out


def test_the_threshold_bounds_the_norm_of_the_difference() -> None:
    source, target = nn.Linear(2, 4, bias=False), nn.Linear(2, 4, bias=False)
    nn.init.zeros_(source.weight)
    nn.init.constant_(target.weight, 0.25)
    converter, x = converter_of(source, target), (torch.ones(1, 2),)  # difference 0.5 in 4 outputs: norm 1
    assert converter.compare_models(x, threshold=1.0)
    assert not converter.compare_models(x, threshold=0.999)
    assert not converter.compare_models(x)


def test_a_nan_is_a_difference() -> None:
    source, target = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(target.weight, float("nan"))
    assert not converter_of(source, target).compare_models((torch.ones(1, 1),))


def test_the_target_is_reshaped_to_the_source() -> None:
    class Flat(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).flatten()

    source = nn.Linear(2, 3)
    target = Flat(2, 3)
    target.load_state_dict(source.state_dict())
    assert converter_of(source, target).compare_models((torch.randn(5, 2),))


def test_layers_that_run_in_one_model_only_are_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    long, short = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    short.load_state_dict({"0." + key: value for key, value in long[0].state_dict().items()})
    assert not ModelConverter(long, short).compare_models((torch.randn(1, 2),))
    assert "no counterpart for these layers of the source: 1" in capsys.readouterr().out
    assert not ModelConverter(short, long).compare_models((torch.randn(1, 2),))
    assert "the source has no counterpart" in capsys.readouterr().out


class Tupled(nn.Linear):
    def forward(self, input: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = super().forward(input)
        return {"main": output, "extra": (output + self.shift, None)}

    shift = 0.0


class First(nn.Module):
    def forward(self, outputs: dict[str, Any]) -> Tensor:
        return outputs["main"]


def test_outputs_in_tuples_and_dicts_are_compared() -> None:
    source, target = nn.Sequential(Tupled(2, 2), First()), nn.Sequential(Tupled(2, 2), First())
    target.load_state_dict(source.state_dict())
    converter = converter_of(source, target)
    assert converter.compare_models((torch.randn(1, 2),))
    target[0].shift = 1.0
    assert not converter.compare_models((torch.randn(1, 2),))


def test_fewer_outputs_are_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    tupled, plain = nn.Sequential(Tupled(2, 2), First()), nn.Sequential(nn.Linear(2, 2))
    plain.load_state_dict(tupled.state_dict())
    assert not ModelConverter(tupled, plain).compare_models((torch.randn(1, 2),))
    assert "2 tensors in the source, 1 in the target" in capsys.readouterr().out


def test_writing_in_place_after_a_layer_does_not_fool_the_comparison() -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    target = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert converter_of(source, target).run((torch.randn(3, 4),))


def test_outputs_of_the_source_are_let_go_as_the_target_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    clone = Tensor.clone

    def tracked(self: Tensor, **options: Any) -> Tensor:
        copy = clone(self, **options)
        alive.append(weakref.ref(copy))
        return copy

    counts: list[int] = []

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gc.collect()
            counts.append(sum(reference() is not None for reference in alive))
            return x

    layers = [nn.Linear(2, 2) for _ in range(3)]
    source = nn.Sequential(*layers)
    target = nn.Sequential(layers[0], Count(), layers[1], Count(), layers[2], Count())
    monkeypatch.setattr(Tensor, "clone", tracked)
    assert converter_of(source, target).compare_models((torch.randn(1, 2),))
    assert counts == [2, 1, 0] and not any(reference() is not None for reference in alive)
