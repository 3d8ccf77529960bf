"""Low-rank updates on their own: structure, scale, and loading."""

from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Conv2dLora, LinearLora, Lora


@pytest.fixture
def linear() -> LinearLora:
    return LinearLora("foo", in_features=320, out_features=128, rank=16)


@pytest.fixture
def conv() -> Conv2dLora:
    return Conv2dLora("bar", in_channels=16, out_channels=8, rank=4, kernel_size=(3, 1), padding=(1, 0))


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError):
        Lora("foo")  # pyright: ignore[reportAbstractUsage]
    assert issubclass(LinearLora, Lora) and issubclass(Lora, fl.Chain)


def test_a_linear_lora(linear: LinearLora) -> None:
    assert linear.name == "foo" and linear.scale == 1.0
    assert linear.rank == linear.down.out_features == linear.up.in_features == 16
    assert (linear.in_features, linear.out_features) == (320, 128)
    assert (linear.down.in_features, linear.up.out_features) == (320, 128)
    assert linear.down.weight.shape == (16, 320) and linear.up.weight.shape == (128, 16)


def test_a_conv_lora(conv: Conv2dLora) -> None:
    assert conv.name == "bar" and conv.scale == 1.0
    assert conv.rank == conv.down.out_channels == conv.up.in_channels == 4
    assert (conv.in_channels, conv.out_channels) == (16, 8)
    assert (conv.down.in_channels, conv.up.out_channels) == (16, 8)
    assert conv.kernel_size == (3, 1) and conv.padding == (1, 0) and conv.stride == (1, 1)
    assert conv.down.kernel_size == (3, 3) and conv.up.kernel_size == (1, 1)
    assert conv.down.padding == (1, 1) and conv.up.padding == (0, 0)


def test_the_defaults() -> None:
    linear, conv = LinearLora("foo", 2, 3), Conv2dLora("foo", 2, 3)
    assert linear.rank == conv.rank == 16
    assert conv.kernel_size == (1, 3) and conv.padding == (0, 1) and conv.stride == (1, 1)
    conv = Conv2dLora("foo", 2, 3, kernel_size=(3, 1))
    assert conv.padding == (0, 1) and conv.down.padding == (0, 0) and conv.up.padding == (1, 1)
    conv = Conv2dLora("foo", 2, 3, stride=(2, 1))
    assert conv.down.stride == (2, 2) and conv.up.stride == (1, 1)


def test_the_children_and_the_state(linear: LinearLora, conv: Conv2dLora) -> None:
    assert list(linear._modules) == ["Linear_1", "Linear_2", "Multiply"]
    assert list(conv._modules) == ["Conv2d_1", "Conv2d_2", "Multiply"]
    assert list(linear.state_dict()) == ["Linear_1.weight", "Linear_2.weight"]
    assert list(conv.state_dict()) == ["Conv2d_1.weight", "Conv2d_2.weight"]
    assert linear.down is linear[0] and linear.up is linear[1]


def test_the_rank_is_positive() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LinearLora("foo", 2, 2, rank=0)


def test_the_name_is_positional_only() -> None:
    with pytest.raises(TypeError):
        LinearLora(name="foo", in_features=1, out_features=1)  # pyright: ignore[reportCallIssue]


def test_device_and_dtype_reach_the_weights() -> None:
    lora = LinearLora("foo", 2, 3, device="meta", dtype=torch.float64)
    assert lora.down.weight.is_meta and lora.up.weight.dtype == torch.float64


def test_a_fresh_lora_gives_zero(linear: LinearLora, conv: Conv2dLora) -> None:
    assert not linear(torch.randn(1, 320)).any()
    assert not conv(torch.randn(1, 16, 8, 8)).any()


def test_reset_parameters_draws_down_and_clears_up() -> None:
    lora = LinearLora("foo", 2000, 3, rank=4)
    assert lora.down.weight.std().item() == pytest.approx(0.25, rel=0.05)
    lora.load_weights(torch.ones(4, 2000), torch.ones(3, 4))
    lora.reset_parameters()
    assert lora.down.weight.std().item() == pytest.approx(0.25, rel=0.05)
    assert not lora.up.weight.any()


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_construction_draws_as_torch_does_for_down_and_up_and_then_for_down_again(kind: str) -> None:
    torch.manual_seed(3)
    if kind == "linear":
        lora: Lora[fl.WeightedModule] = LinearLora("foo", 6, 5, rank=4)
    else:
        lora = Conv2dLora("foo", 6, 5, rank=4)
    after = torch.randn(1)
    torch.manual_seed(3)
    if kind == "linear":
        down: torch.nn.Module = torch.nn.Linear(6, 4, bias=False)
        torch.nn.Linear(4, 5, bias=False)
    else:
        down = torch.nn.Conv2d(6, 4, 1, bias=False)
        torch.nn.Conv2d(4, 5, 3, bias=False)
    torch.nn.init.normal_(down.weight, std=1 / 4)
    assert torch.equal(lora.down.weight, down.weight) and torch.equal(torch.randn(1), after)


def test_the_output_is_the_scaled_product() -> None:
    down, up, x = weights((4, 6), (5, 4), (2, 3, 6))
    lora = LinearLora.from_weights("foo", down=down, up=up)
    lora.scale = 0.5
    torch.testing.assert_close(lora(x), 0.5 * (x @ down.T) @ up.T)


def test_setting_the_scale_reaches_the_child_that_multiplies(linear: LinearLora) -> None:
    linear.scale = 2.0
    assert linear.scale == 2.0 and linear.ensure_find(fl.Multiply).scale == 2.0
    linear.insert(0, fl.Identity())
    linear.scale = 3.0
    assert linear.ensure_find(fl.Multiply).scale == 3.0
    assert LinearLora("foo", 2, 2, scale=-1.0).ensure_find(fl.Multiply).scale == -1.0


def test_the_rank_is_read_only(linear: LinearLora) -> None:
    with pytest.raises(AttributeError):
        linear.rank = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_copy_answers_rank_and_scale_and_has_a_scale_of_its_own(linear: LinearLora) -> None:
    linear.scale = 2.0
    copy = linear.structural_copy()
    assert copy.rank == 16 and copy.scale == 2.0 and copy.down is linear.down
    copy.scale = 3.0
    assert linear.scale == 2.0 and linear.ensure_find(fl.Multiply).scale == 2.0


def test_weights_of_a_linear_lora_make_an_equal_one(linear: LinearLora) -> None:
    twin = LinearLora.from_weights("foo", down=linear.down.weight, up=linear.up.weight)
    x = torch.randn(1, 320)
    assert torch.equal(linear(x), twin(x))
    assert (twin.in_features, twin.out_features, twin.rank, twin.scale) == (320, 128, 16, 1.0)


def test_weights_of_a_conv_lora_make_an_equal_one() -> None:
    lora = Conv2dLora("foo", in_channels=16, out_channels=8, rank=4, kernel_size=(3, 1))
    lora.load_weights(*weights((4, 16, 3, 3), (8, 4, 1, 1)))
    twin = Conv2dLora.from_weights("foo", down=lora.down.weight, up=lora.up.weight)
    other = Conv2dLora("foo", 16, 8, rank=4, kernel_size=(3, 1), padding=(1, 0))
    other.load_weights(lora.down.weight, lora.up.weight)
    x = torch.randn(1, 16, 64, 64)
    assert torch.equal(other(x), twin(x))
    lora.reset_parameters()
    twin.load_weights(lora.down.weight, lora.up.weight)
    assert torch.equal(lora(x), twin(x)) and twin(x).shape == (1, 8, 64, 64)
    assert twin.kernel_size == (3, 1) and twin.padding == (1, 0) and twin.stride == (1, 1)


def test_from_weights_chooses_by_the_number_of_dimensions() -> None:
    assert isinstance(Lora.from_weights("foo", *weights((4, 6), (5, 4))), LinearLora)
    conv = Lora.from_weights("foo", *weights((4, 6, 1, 1), (5, 4, 3, 3)))
    assert isinstance(conv, Conv2dLora) and conv.kernel_size == (1, 3) and conv.padding == (0, 1)
    with pytest.raises(ValueError, match="Unsupported weight shapes: up=.*5, 4, 3.*down=.*4, 6, 3"):
        Lora.from_weights("foo", *weights((4, 6, 3), (5, 4, 3)))
    with pytest.raises(ValueError, match="Unsupported weight shapes"):
        Lora.from_weights("foo", *weights((4, 6), (5, 4, 3, 3)))


@pytest.mark.parametrize("size,padding", [(1, 0), (3, 1), (5, 0), (7, 0)])
def test_from_weights_pads_kernels_of_three_only(size: int, padding: int) -> None:
    lora = Conv2dLora.from_weights("foo", *weights((4, 6, size, size), (5, 4, size, size)))
    assert lora.padding == (padding, padding) and lora.kernel_size == (size, size)
    assert lora.down.padding == lora.up.padding == (padding, padding)


def test_from_weights_takes_device_and_dtype_from_up() -> None:
    down, up = weights((4, 6), (5, 4))
    lora = Lora.from_weights("foo", down=down, up=up.double())
    assert lora.down.weight.dtype == lora.up.weight.dtype == torch.float64


def test_different_ranks_are_an_error() -> None:
    with pytest.raises(AssertionError, match="Rank mismatch: down rank=4 and up rank=3"):
        Lora.from_weights("foo", *weights((4, 6), (5, 3)))
    with pytest.raises(AssertionError, match="Rank mismatch: down rank=4 and up rank=3"):
        Lora.from_weights("foo", *weights((4, 6, 1, 1), (5, 3, 1, 1)))


@pytest.mark.parametrize("cls,ndim", [(LinearLora, 4), (Conv2dLora, 2)])
def test_weights_of_another_dimension_are_refused(cls: type[Lora[fl.WeightedModule]], ndim: int) -> None:
    down, up = weights((4, 6, 1, 1)[:ndim], (5, 4, 1, 1)[:ndim])
    with pytest.raises(AssertionError):
        cls.from_weights("foo", down=down, up=up)


def test_from_weights_draws_no_random_number() -> None:
    tensors = weights((4, 6), (5, 4))
    state = torch.get_rng_state()
    Lora.from_weights("foo", *tensors)
    assert torch.equal(torch.get_rng_state(), state)


def test_from_dict_pairs_weights_in_order_and_ignores_the_rest() -> None:
    down, up, conv_down, conv_up, leftover = weights((4, 6), (5, 4), (4, 6, 1, 1), (5, 4, 3, 3), (4, 6))
    loras = Lora.from_dict(
        "foo",
        {
            "down.weight": down,
            "up.weight": up,
            "alpha": torch.tensor(8.0),
            "a.b.lora_down.weight": conv_down,
            "a.b.lora_up.weight": conv_up,
            "last.down.weight": leftover,
        },
    )
    assert list(loras) == ["", "a.b"]
    linear, conv = loras.values()
    assert isinstance(linear, LinearLora) and isinstance(conv, Conv2dLora)
    assert linear.name == conv.name == "foo" and linear.scale == 1.0
    assert torch.equal(linear.down.weight, down) and torch.equal(conv.up.weight, conv_up)


def test_from_dict_of_nothing_is_empty() -> None:
    assert Lora.from_dict("foo", {}) == {}


def test_load_weights_shares_storage_where_nothing_changes(linear: LinearLora) -> None:
    down, up = weights((16, 320), (128, 16))
    linear.load_weights(down, up)
    assert isinstance(linear.down.weight, torch.nn.Parameter)
    assert linear.down.weight.data_ptr() == down.data_ptr() and linear.up.weight.data_ptr() == up.data_ptr()
    linear.load_weights(down.double(), up.double())
    assert linear.down.weight.dtype == torch.float32


def test_load_weights_wants_the_present_shapes(linear: LinearLora) -> None:
    down, up = weights((16, 320), (128, 16))
    before = linear.down.weight
    for bad in ((down[:8], up), (down, up[:, :8])):
        with pytest.raises(AssertionError):
            linear.load_weights(*bad)
        assert linear.down.weight is before


def test_a_linear_lora_fits_linears_of_its_features(linear: LinearLora) -> None:
    assert linear.is_compatible(fl.Linear(320, 128)) and linear.is_compatible(fl.Linear(320, 128, bias=False))
    assert not linear.is_compatible(fl.Linear(320, 127)) and not linear.is_compatible(fl.Linear(128, 320))
    assert not linear.is_compatible(fl.Conv2d(320, 128, 1))


def test_a_conv_lora_fits_convolutions_like_it(conv: Conv2dLora) -> None:
    assert conv.is_compatible(fl.Conv2d(16, 8, 3, padding=1)) and conv.down.stride == (1, 1)
    assert conv.is_compatible(fl.Conv2d(16, 8, 3, padding=1, stride=2)) and conv.down.stride == (2, 2)
    assert not conv.is_compatible(fl.Conv2d(16, 9, 3, padding=1))
    assert not conv.is_compatible(fl.Conv2d(8, 16, 3, padding=1))
    assert not conv.is_compatible(fl.Linear(16, 8))


@pytest.mark.parametrize("rank", [1.5, "4", True, None])
def test_a_rank_is_a_whole_number(rank: Any) -> None:
    for make in (LinearLora, Conv2dLora):
        with pytest.raises(TypeError, match=f"rank must be a whole number, got {rank!r}"):
            make("foo", 4, 4, rank=rank)
