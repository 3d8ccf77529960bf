"""Fresh updates are attached to the layers that are meant, all or none, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import refiners.fluxion.layers as fl
from refiners.demo.unet import DigitsUNet
from refiners.fluxion.adapters import Adapter, LinearLora, LoraAdapter
from refiners.fluxion.adapters.lora import MergedLoras
from refiners.fluxion.adapters.lora.training import TrainableConv2dLora, TrainableLinearLora, add_trainable_loras
from refiners.foundationals.clip import CLIPTextEncoder

Check = Callable[[Any, fl.Chain], None]
StateOf = Callable[[fl.Chain], Any]
ALL = ["Encoder.Conv2d", "Encoder.Linear_1", "Encoder.Linear_2", "Head.Linear_1", "Head.Linear_2"]


def test_all_layers_have_updates_and_only_these_are_trained(model: fl.Chain, x: Tensor) -> None:
    before = model(x)
    loras = add_trainable_loras("style", model, rank=2)
    assert list(loras.loras) == ALL
    assert {type(lora) for lora in loras.loras.values()} == {TrainableLinearLora, TrainableConv2dLora}
    assert [list(adapter.loras.values()) for adapter in loras.adapters] == [[each] for each in loras.loras.values()]
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in loras.parameters()}
    assert [tuple(p.shape) for p in loras.parameters()[:4]] == [(2, 3, 3, 3), (8, 2, 1, 1), (2, 8), (12, 2)]
    assert torch.equal(model(x), before)


def test_ejecting_restores_the_tree_and_what_was_trained(
    model: fl.Chain, x: Tensor, state_of: StateOf, assert_same: Check, randomize: Callable[[Any], None]
) -> None:
    model.layer(("Head", "Linear_1"), fl.Linear).weight.requires_grad_(False)
    before, y = state_of(model), model(x)
    loras = add_trainable_loras("style", model, rank=2)
    randomize(loras)
    trained = model(x)
    assert not torch.allclose(trained, y)
    for _ in range(2):
        loras.eject()
        assert_same(before, model)
        assert torch.equal(model(x), y)
        assert torch.equal(loras.inject() and model(x), trained)
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in loras.parameters()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layer_types": [fl.Conv2d]}, ALL[:1]),
        ({"paths": "Linear_1"}, [ALL[1], ALL[3]]),
        ({"paths": ["Head.Linear_1", r"Conv\w+"]}, [ALL[0], ALL[3]]),
        ({"paths": "Head"}, ValueError("paths: 'Head' fits none of 5 layers, such as Encoder.Conv2d")),
        ({"include": ["Head"]}, ALL[3:]),
        ({"exclude": ["Head"], "layer_types": (fl.Linear,)}, ALL[1:3]),
        ({"include": ["Encoder"], "paths": "Linear_2"}, [ALL[2]]),
        ({"include": ["Decoder"]}, ValueError("no layer was chosen: Chain has 5 of Linear or Conv2d")),
        ({"include": ["Chain"], "exclude": ["Encoder"]}, ALL[3:]),
    ],
    ids=str,
)
def test_layers_are_chosen(model: fl.Chain, options: dict[str, Any], expected: Any) -> None:
    if isinstance(expected, ValueError):
        with pytest.raises(ValueError, match=str(expected)):
            add_trainable_loras("style", model, **options)
    else:
        assert list(add_trainable_loras("style", model, **options).loras) == expected


def test_ranks_and_multipliers_by_path(model: fl.Chain) -> None:
    loras = add_trainable_loras(
        "style",
        model,
        rank=4,
        alpha=2,
        rank_pattern={"Head.Linear_1": 3, "Linear_1": 8},
        alpha_pattern={r"Encoder\..*": 1},
        rank_stabilized=True,
    )
    assert [lora.rank for lora in loras.loras.values()] == [4, 8, 4, 3, 4]
    expected = [1 / 2, 1 / 8**0.5, 1 / 2, 2 / 3**0.5, 2 / 2]
    assert [lora.multiplier for lora in loras.loras.values()] == pytest.approx(expected)
    assert [lora.scale for lora in loras.loras.values()] == [1.0] * 5


def test_without_alpha_the_multiplier_is_one(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model, rank=4, rank_pattern={"Head.Linear_1": 3})
    assert {lora.multiplier for lora in loras.loras.values()} == {1.0}


@pytest.mark.parametrize("initialisation", ["gaussian", "kaiming", "orthogonal"])
def test_a_seed_gives_the_same_updates_whatever_else_was_drawn(model: fl.Chain, initialisation: Any) -> None:
    drawn: list[list[Tensor]] = []
    for skipped in (0, 5):
        torch.rand(skipped)
        state = torch.get_rng_state()
        generator = Generator().manual_seed(1)
        loras = add_trainable_loras("style", model, generator=generator, initialisation=initialisation, rank=2)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append([parameter.detach().clone() for parameter in loras.parameters()])
        loras.eject()
    assert all(map(torch.equal, *drawn))
    assert not torch.equal(drawn[0][2], drawn[0][6][:, :8])  # layers differ


def test_without_a_generator_torch_draws(model: fl.Chain) -> None:
    drawn: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loras = add_trainable_loras("style", model)
        drawn.append(loras.parameters()[0].detach().clone())
        loras.eject()
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
    "rank, no number": ({"rank": 2.0}, TypeError, "rank must be a whole number, got 2.0"),
    "alpha": ({"alpha": -1.0}, ValueError, "alpha must be positive and finite, got -1.0"),
    "alpha, no number": ({"alpha": "1"}, TypeError, "alpha must be a number, got '1'"),
    "dropout": ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1, got 1.0"),
    "dropout, no number": ({"dropout": True}, TypeError, "dropout must be a number, got True"),
    "rank pattern": ({"rank_pattern": {"Linear_1": 0}}, ValueError, r"rank_pattern\['Linear_1'\] must be at least 1"),
    "unused pattern": ({"alpha_pattern": {"Lin": 1}}, ValueError, "alpha_pattern: 'Lin' fits none of 5 layers"),
    "no expression": ({"paths": "("}, ValueError, r"paths: '\(' is no regular expression"),
    "no text": ({"paths": [3]}, TypeError, "paths must be regular expressions, got 3"),
    "no list": ({"paths": 3}, TypeError, "paths must be a pattern or a list of them, got 3"),
    "one type": ({"layer_types": fl.Linear}, TypeError, "layer_types must be some of Linear and Conv2d"),
    "one text": ({"include": "Head"}, TypeError, "include must be a list of texts, got 'Head'"),
    "layer type": ({"layer_types": [fl.LayerNorm]}, TypeError, "layer_types must be some of Linear and Conv2d"),
    "initialisation": ({"initialisation": "zero"}, ValueError, "initialisation must be one of gaussian, kaiming"),
    "dtype": ({"dtype": torch.float16}, ValueError, "dtype must be torch.float32, as that of Encoder.Conv2d"),
    "no dtype": ({"dtype": "float32"}, TypeError, "dtype must be a torch.dtype, got 'float32'"),
    "generator": ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
    "orthogonal": ({"rank": 7, "initialisation": "orthogonal"}, ValueError, "rank must be at most 6 .* 'orthogonal'"),
    "pissa": ({"rank": 6, "initialisation": "pissa"}, ValueError, "Head.Linear_2: rank must be at most 5"),
}


@pytest.mark.parametrize(("options", "kind", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_changes_nothing(
    model: fl.Chain,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
    state_of: StateOf,
    assert_same: Check,
) -> None:
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(kind, match=message):
        add_trainable_loras("style", model, **options)
    assert_same(before, model)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_printed_form(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model, rank=2)
    count = sum(parameter.numel() for parameter in loras.parameters())
    numbers = f"TrainableLoras('style', {len(loras.loras)} of {count} numbers,"
    assert repr(loras) == f"{numbers} attached to {type(model).__name__})"
    loras.eject()
    assert repr(loras) == f"{numbers} not attached to {type(model).__name__})"


def test_a_state_that_is_not_finite_is_not_loaded(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model, rank=2)
    before = {key: value.clone() for key, value in loras.state_dict().items()}
    wrong = {key: value + 1 if not key.endswith(".alpha") else value for key, value in before.items()}
    key = next(key for key in reversed(wrong) if key.endswith(".up"))
    wrong[key][0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"nothing was loaded:\n  {key} must be finite numbers$"):
        loras.load_state_dict(wrong)
    assert all(torch.equal(value, before[key]) for key, value in loras.state_dict().items())


def test_names_and_targets(model: fl.Chain) -> None:
    with pytest.raises(TypeError, match="target must be a chain, got Linear"):
        add_trainable_loras("style", fl.Linear(1, 1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="name must be a text that is not empty, got ''"):
        add_trainable_loras("", model)


def test_a_name_that_is_taken_changes_nothing(model: fl.Chain, state_of: StateOf, assert_same: Check) -> None:
    layer = model.layer(("Head", "Linear_2"), fl.Linear)
    LoraAdapter(layer, LinearLora("style", 6, 5)).inject(model)
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"Head.Linear_2: the layer has an update of the name 'style'"):
        add_trainable_loras("style", model)
    assert_same(before, model)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_convolution_of_several_groups_is_refused_by_its_path(state_of: StateOf, assert_same: Check) -> None:
    chain = fl.Chain(fl.Conv2d(4, 4, kernel_size=1, groups=2), fl.Conv2d(4, 4, kernel_size=1))
    before = state_of(chain)
    with pytest.raises(ValueError, match="Conv2d_1 is a convolution of several groups"):
        add_trainable_loras("style", chain, rank=2)
    assert_same(before, chain)
    assert list(add_trainable_loras("style", chain, rank=2, paths="Conv2d_2").loras) == ["Conv2d_2"]


class Without(fl.Chain, Adapter[fl.Linear]):
    """A layer in the place of another, which is not used meanwhile."""

    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Linear(target.in_features, target.out_features))


def test_layers_that_an_adapter_does_without_have_no_updates(model: fl.Chain) -> None:
    Without(model.layer(("Head", "Linear_1"), fl.Linear)).inject(model)
    assert list(add_trainable_loras("style", model).loras) == [each for each in ALL if each != "Head.Linear_1"]


def test_a_layer_in_two_places_has_an_update_for_each() -> None:
    layer = fl.Linear(6, 6)
    chain = fl.Chain(fl.Chain(layer), fl.ReLU(), layer)
    loras = add_trainable_loras("style", chain, rank=2)
    assert list(loras.loras) == ["Chain.Linear", "Linear"] and loras.adapters[0] is not loras.adapters[1]
    loras.eject()
    assert chain[0][0] is chain[2] is layer


@pytest.mark.parametrize("first", [0, 1])
def test_updates_beside_others_are_ejected_in_any_order(
    model: fl.Chain, x: Tensor, first: int, state_of: StateOf, assert_same: Check, randomize: Callable[[Any], None]
) -> None:
    before = state_of(model)
    sets = [add_trainable_loras(name, model, rank=2) for name in ("one", "two")]
    assert len(sets[0].adapters) == 5 and sets[0].adapters == sets[1].adapters
    assert not any(parameter.requires_grad for parameter in sets[0].parameters())
    assert all(parameter.requires_grad for parameter in sets[1].parameters())
    for each in sets:
        randomize(each)
    sets[first].eject()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 10
    alone = model(x)
    sets[1 - first].eject()
    assert_same(before, model)
    assert torch.equal(sets[1 - first].inject() and model(x), alone)


def test_those_that_are_attached_or_not_are_not_so_again(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model)
    with pytest.raises(RuntimeError, match="the updates 'style' are attached already"):
        loras.inject()
    loras.eject()
    with pytest.raises(RuntimeError, match="the updates 'style' are not attached"):
        loras.eject()


def test_ejecting_what_others_have_taken_out(model: fl.Chain, state_of: StateOf, assert_same: Check) -> None:
    before = state_of(model)
    loras = add_trainable_loras("style", model)
    loras.adapters[0].eject()
    loras.adapters[1].remove_lora("style")
    model.layer(("Encoder", "LoraAdapter_1"), LoraAdapter).eject()  # without an update now
    loras.eject()
    assert_same(before, model)


def test_merged_updates_are_not_ejected(model: fl.Chain, x: Tensor, randomize: Callable[[Any], None]) -> None:
    loras = add_trainable_loras("style", model, alpha=3.0, rank=2)
    randomize(loras)
    trained, merged = model(x), MergedLoras(model)
    merged.merge(["style"])
    torch.testing.assert_close(model(x), trained)
    with pytest.raises(ValueError, match="the updates 'style' are merged: unmerge them first"):
        loras.eject()
    merged.unmerge(["style"])
    assert torch.equal(model(x), trained)
    loras.eject()


def test_a_layer_that_is_gone(model: fl.Chain, state_of: StateOf, assert_same: Check) -> None:
    loras = add_trainable_loras("style", model)
    loras.eject()
    model.layer("Head", fl.Chain).pop()
    before = state_of(model)
    with pytest.raises(ValueError, match="Head.Linear_2: the layer is in no chain of Chain any more"):
        loras.inject()
    assert_same(before, model)


def test_merging_spares_master_weights_and_dropout_follows_the_mode(
    model: fl.Chain, x: Tensor, randomize: Callable[[Any], None]
) -> None:
    model.to(torch.bfloat16)
    loras = add_trainable_loras("style", model, rank=2, dropout=0.5)
    randomize(loras)
    before = [parameter.detach().clone() for parameter in loras.parameters()]
    merged = MergedLoras(model)
    merged.merge(["style"])
    model.eval()
    merged.unmerge(["style"])
    assert all(map(torch.equal, before, loras.parameters()))
    assert {parameter.dtype for parameter in loras.parameters()} == {torch.float32}
    assert torch.equal(model(x.to(torch.bfloat16)), model(x.to(torch.bfloat16)))


def test_a_cast_of_the_model_is_one_of_what_is_merged(model: fl.Chain, randomize: Callable[[Any], None]) -> None:
    loras = add_trainable_loras("style", model, rank=2)
    randomize(loras)
    merged = MergedLoras(model)
    merged.merge(["style"])
    model.to(torch.bfloat16)
    merged.unmerge(["style"])
    assert {parameter.dtype for parameter in loras.parameters()} == {torch.bfloat16}


def test_layers_are_found_again_under_other_names(model: fl.Chain) -> None:
    loras = add_trainable_loras("style", model, paths="Head.Linear_2")
    layer = loras.adapters[0].target
    loras.eject()
    model.layer("Head", fl.Chain).insert(1, fl.Linear(6, 6))  # and another has its name now
    loras.inject()
    assert loras.adapters[0].target is layer


def test_dropout_follows_the_mode_of_the_layer(model: fl.Chain, x: Tensor, randomize: Callable[[Any], None]) -> None:
    model.eval()
    loras = add_trainable_loras("style", model, dropout=0.5)
    randomize(loras)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert {lora.dropout for lora in loras.loras.values()} == {0.5}


@pytest.mark.parametrize(
    "make",
    [
        lambda: CLIPTextEncoder(embedding_dim=16, num_layers=2, num_attention_heads=2, feedforward_dim=16),
        lambda: DigitsUNet(channels=8, inner_channels=8, embedding_dim=8),
    ],
    ids=["CLIP", "demo"],
)
def test_models_of_other_kinds(make: Callable[[], fl.Chain], state_of: StateOf, assert_same: Check) -> None:
    chain = make()
    before = state_of(chain)
    loras = add_trainable_loras("style", chain, rank=2)
    layers = [layer for key, layer in chain.named_modules() if type(layer) in (fl.Linear, fl.Conv2d)]
    assert len(loras.adapters) == len(layers) // 3 > 10  # the layer, and two for its update
    loras.eject()
    assert_same(before, chain)
