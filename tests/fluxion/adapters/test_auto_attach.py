"""Attaching sets of updates by shape and order."""

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Conv2dLora, LinearLora, Lora, LoraAdapter, auto_attach_loras


class Block(fl.Chain):
    pass


class Head(fl.Chain):
    pass


@pytest.fixture
def model() -> fl.Chain:
    return fl.Chain(
        Block(fl.Sum(fl.Linear(4, 4), fl.Linear(4, 4)), fl.Linear(4, 8)),
        Head(fl.Linear(4, 4), fl.Conv2d(2, 3, 3, stride=2, padding=1)),
    )


def linear(name: str = "lora", in_features: int = 4, out_features: int = 4) -> LinearLora:
    return LinearLora(name, in_features, out_features, rank=2)


def full_set(name: str = "lora") -> dict[str, Lora[fl.WeightedModule]]:
    return {
        "a": linear(name),
        "b": linear(name),
        "c": linear(name, 4, 8),
        "d": linear(name),
        "e": Conv2dLora(name, 2, 3, rank=2),
    }


def snapshot(root: fl.Chain) -> list[tuple[str, int, int]]:
    return [(name, id(module), id(getattr(module, "parent", None))) for name, module in root.named_modules()]


def test_the_first_free_layer_of_the_shape_is_taken_and_not_yet_injected(model: fl.Chain) -> None:
    before = snapshot(model)
    lora = linear()
    result = lora.auto_attach(model)
    assert result is not None
    adapter, parent = result
    assert parent is model.Block.Sum and adapter.target is parent.Linear_1 and adapter.parent is None
    assert snapshot(model) == before
    assert lora in adapter


def test_an_adapted_layer_takes_another_name_at_once(model: fl.Chain) -> None:
    first = model.Block.Sum.layer(0, fl.Linear)
    adapter = LoraAdapter(first, linear("one")).inject(model)
    assert linear("two").auto_attach(model) == (adapter, None)
    assert adapter.names == ["one", "two"]
    result = linear("two").auto_attach(model)
    assert result is not None and result[0].target is model.Block.Sum.layer(1, fl.Linear)


def test_without_a_layer_of_the_shape_there_is_none(model: fl.Chain) -> None:
    assert linear("lora", 5, 4).auto_attach(model) is None
    assert Conv2dLora("lora", 3, 2).auto_attach(model) is None


def test_layers_of_loras_are_no_candidates() -> None:
    chain = fl.Chain(fl.Linear(4, 8))
    LoraAdapter(chain.layer(0, fl.Linear), LinearLora("one", 4, 8, rank=4)).inject(chain)
    assert linear("two", 4, 4).auto_attach(chain) is None


@pytest.mark.parametrize(
    "include,exclude,expected",
    [
        (["Head"], None, "Head"),
        (["Sum"], None, "Sum"),
        (["Head", "Block"], None, "Sum"),
        (None, ["Sum"], "Head"),
        (None, ["Block"], "Head"),
        (["Chain"], ["Block"], "Head"),
        (["Linear"], None, None),
        (None, ["Linear"], "Sum"),
        (["Sum"], ["Block"], None),
        (None, ["Chain"], None),
    ],
)
def test_candidates_go_by_the_exact_names_of_their_ancestors(
    model: fl.Chain, include: list[str] | None, exclude: list[str] | None, expected: str | None
) -> None:
    result = linear().auto_attach(model, include=include, exclude=exclude)
    assert (None if result is None else type(result[1]).__name__) == expected


def test_ancestors_above_the_target_count(model: fl.Chain) -> None:
    assert linear().auto_attach(model.Head, exclude=["Chain"]) is None
    assert linear().auto_attach(model.Block.Sum, include=["Block"]) is not None


def test_a_set_is_attached_in_order(model: fl.Chain) -> None:
    loras = full_set()
    assert auto_attach_loras(loras, model) == []
    assert all(adapter[0] is adapter.target for adapter in model.layers(LoraAdapter))
    found = {key: lora.ensure_parent.get_path() for key, lora in loras.items()}
    assert found == {
        "a": "Chain.Block.Sum.LoraAdapter_1",
        "b": "Chain.Block.Sum.LoraAdapter_2",
        "c": "Chain.Block.LoraAdapter",
        "d": "Chain.Head.LoraAdapter_1",
        "e": "Chain.Head.LoraAdapter_2",
    }


def test_keys_play_no_part(model: fl.Chain) -> None:
    loras = full_set()
    reordered = {key: loras[key] for key in ("e", "d", "c", "b", "a")}
    assert auto_attach_loras(reordered, model) == []
    assert loras["d"].ensure_parent.get_path() == "Chain.Block.Sum.LoraAdapter_1"
    assert loras["a"].ensure_parent.get_path() == "Chain.Head.LoraAdapter_1"


def test_an_adapted_model_computes_the_sum(model: fl.Chain) -> None:
    block = model.layer("Block", Block)
    x = torch.randn(2, 4)
    first, second, last = block.Sum.Linear_1, block.Sum.Linear_2, block.Linear
    loras: dict[str, Lora[fl.WeightedModule]] = {key: full_set()[key] for key in "abc"}
    for lora in loras.values():
        torch.nn.init.normal_(lora.up.weight)
    auto_attach_loras(loras, block)
    hidden = first(x) + loras["a"](x) + second(x) + loras["b"](x)
    torch.testing.assert_close(block(x), last(hidden) + loras["c"](hidden))


def test_the_stride_of_an_attached_convolution_is_that_of_its_layer(model: fl.Chain) -> None:
    lora = Conv2dLora("lora", 2, 3, rank=2)
    auto_attach_loras({"": lora}, model)
    assert lora.down.stride == (2, 2)
    assert lora.ensure_parent(torch.randn(1, 2, 8, 8)).shape == (1, 3, 4, 4)


def test_two_names_share_one_adapter_per_layer(model: fl.Chain) -> None:
    auto_attach_loras(full_set("one"), model)
    auto_attach_loras(full_set("two"), model)
    adapters = list(model.layers(LoraAdapter))
    assert len(adapters) == 5 and all(adapter.names == ["one", "two"] for adapter in adapters)


def test_the_debug_map_lists_keys_and_paths(model: fl.Chain) -> None:
    first: list[tuple[str, str]] = [("before", "")]
    auto_attach_loras(full_set("one"), model, debug_map=first)
    assert first[0] == ("before", "")
    assert dict(first[1:]).keys() == set("abcde")
    assert first[1] == ("a", "Chain.Block.Sum.Linear_1") and first[3] == ("c", "Chain.Block.Linear")
    assert first[2] == ("b", "Chain.Block.Sum.Linear_2"), "where it stood before `a` was attached"
    second: list[tuple[str, str]] = []
    auto_attach_loras(full_set("two"), model, debug_map=second)
    assert second[0] == ("a", "Chain.Block.Sum.LoraAdapter_1") and second[2] == ("c", "Chain.Block.LoraAdapter")


def test_an_empty_set_is_attached(model: fl.Chain) -> None:
    assert auto_attach_loras({}, model) == []


def test_keys_without_a_place_are_returned(model: fl.Chain) -> None:
    loras = {**full_set(), "f": linear("lora", 7, 7), "g": linear()}
    assert auto_attach_loras(loras, model, sanity_check=False) == ["f", "g"]
    assert len(list(model.layers(LoraAdapter))) == 5


def test_the_sanity_check_wants_a_layer_for_each_lora_and_rolls_back(model: fl.Chain) -> None:
    before, debug_map = snapshot(model), list[tuple[str, str]]()
    with pytest.raises(ValueError, match="sanity check failed: 5 / 6 LoRA layers attached, 1 failed"):
        auto_attach_loras({**full_set(), "f": linear()}, model, debug_map=debug_map)
    assert [key for key, _ in debug_map] == list("abcde"), "filled before the failure"
    assert snapshot(model) == before


def test_the_sanity_check_wants_a_lora_for_each_layer_of_a_shape_and_rolls_back(model: fl.Chain) -> None:
    before = snapshot(model)
    loras = full_set()
    del loras["d"]
    message = "sanity check failed: 1 / 4 LoRA layers attached twice, 3 skipped"
    with pytest.raises(ValueError, match=message):
        auto_attach_loras(loras, model)
    assert snapshot(model) == before
    assert all(lora.parent is None for lora in loras.values())
    assert auto_attach_loras(loras, model, sanity_check=False) == []


def test_a_failed_check_leaves_the_loras_that_were_there(model: fl.Chain) -> None:
    auto_attach_loras(full_set("one"), model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="sanity check failed"):
        auto_attach_loras({**full_set("two"), "f": linear("two")}, model)
    assert snapshot(model) == before


def test_the_same_name_is_not_attached_twice(model: fl.Chain) -> None:
    auto_attach_loras(full_set(), model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="sanity check failed: 0 / 5 LoRA layers attached, 5 failed"):
        auto_attach_loras(full_set(), model)
    assert snapshot(model) == before


def test_a_set_respects_include_and_exclude(model: fl.Chain) -> None:
    loras: dict[str, Lora[fl.WeightedModule]] = {"d": linear()}
    assert auto_attach_loras(loras, model, include=["Head"]) == []
    assert loras["d"].ensure_parent.get_path() == "Chain.Head.LoraAdapter"
    two: dict[str, Lora[fl.WeightedModule]] = {"a": linear(), "b": linear()}
    assert auto_attach_loras(two, model, exclude=["Head"]) == []
    assert all("Sum" in lora.ensure_parent.get_path() for lora in two.values())


def test_attaching_from_a_dict_draws_no_random_number(model: fl.Chain) -> None:
    tensors: dict[str, Tensor] = {"a.down.weight": torch.zeros(2, 4), "a.up.weight": torch.zeros(8, 2)}
    state = torch.get_rng_state()
    auto_attach_loras(Lora.from_dict("lora", tensors), model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_check_gives_convolutions_their_strides_back(model: fl.Chain) -> None:
    lora = Conv2dLora("lora", 2, 3, rank=2)
    with pytest.raises(ValueError, match="1 failed"):
        auto_attach_loras({"fits": lora, "does not": linear("lora", 5, 5)}, model)
    assert (lora.stride, lora.down.stride) == ((1, 1), (1, 1))
    assert lora.parent is None
