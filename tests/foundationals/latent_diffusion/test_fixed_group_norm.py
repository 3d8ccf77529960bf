"""Group normalization by statistics that were recorded once."""

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.auto_encoder import FixedGroupNorm
from refiners.foundationals.latent_diffusion.fixed_group_norm import fixed_group_norms


def make_chain() -> tuple[fl.Chain, fl.GroupNorm]:
    norm = fl.GroupNorm(8, num_groups=2, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return fl.Chain(norm), norm


def test_the_first_input_is_normalized_as_ever() -> None:
    chain, norm = make_chain()
    x = 3 * torch.randn(2, 8, 5, 7) + 1
    expected = norm(x)
    FixedGroupNorm(norm).inject(chain)
    assert_close(chain(x), expected)


def test_later_inputs_are_normalized_as_the_first() -> None:
    chain, norm = make_chain()
    adapter = FixedGroupNorm(norm).inject(chain)
    x, y = 3 * torch.randn(1, 8, 5, 7) + 1, torch.randn(3, 8, 2, 2)
    chain(x)
    groups = x.double().reshape(2, -1)
    mean, var = groups.mean(1), groups.var(1, correction=0)
    assert_close(adapter.mean, mean.float())
    assert_close(adapter.var, var.float())
    centered = (y.double().reshape(3, 2, -1) - mean[None, :, None]) / (var + 1e-3)[None, :, None].sqrt()
    weight, bias = norm.weight.double()[:, None, None], norm.bias.double()[:, None, None]
    assert_close(chain(y), (centered.reshape(y.shape) * weight + bias).float())


def test_statistics_are_those_of_each_sample() -> None:
    chain, norm = make_chain()
    adapter = FixedGroupNorm(norm).inject(chain)
    x = torch.randn(2, 8, 5, 7)
    chain(x)
    assert adapter.mean is not None and adapter.mean.shape == (4,)
    assert_close(
        chain(x[:, :, :3])[1],
        ((x[1, :, :3].reshape(2, -1) - adapter.mean[2:, None]) * 1.0).reshape(8, 3, 7)
        / (adapter.var[2:] + 1e-3).sqrt().repeat_interleave(4)[:, None, None]
        * norm.weight[:, None, None]
        + norm.bias[:, None, None],
    )
    with pytest.raises(ValueError, match=r"recorded for a batch of 2, got \(3, 8, 1, 1\)"):
        adapter(torch.randn(3, 8, 1, 1))


def test_memory_formats_and_dtypes_are_kept(dtype: torch.dtype, error: Callable[..., float]) -> None:
    chain, norm = make_chain()
    x = torch.randn(1, 8, 5, 7)
    expected = norm(x)
    chain.to(dtype)
    FixedGroupNorm(norm).inject(chain)
    for given in (x.to(dtype), x.to(dtype).to(memory_format=torch.channels_last)):
        y = chain(given)
        assert y.dtype == dtype and y.stride() == given.stride()
        assert error(y.float(), expected) < {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


def test_large_deviations_do_not_lose_precision_in_float16(error: Callable[..., float]) -> None:
    chain, norm = make_chain()
    x = 2e4 * torch.randn(1, 8, 9, 9).clamp(-3, 3)
    expected = norm(x.half().float())
    FixedGroupNorm(norm.half()).inject(chain)
    assert error(chain(x.half()).float(), expected) < 2e-3


def test_a_constant_input_gives_the_bias() -> None:
    chain, norm = make_chain()
    FixedGroupNorm(norm).inject(chain)
    x = torch.full((1, 8, 4, 4), 5.0)
    assert_close(chain(x), norm.bias.reshape(1, 8, 1, 1).expand(1, 8, 4, 4), rtol=1e-4, atol=1e-4)


def test_every_norm_of_a_chain_is_replaced_and_put_back() -> None:
    chain = fl.Chain(fl.GroupNorm(8, num_groups=2), fl.Chain(fl.SiLU(), fl.GroupNorm(8, num_groups=4)))
    before, keys = repr(chain), list(chain.state_dict())
    norms = list(chain.layers(fl.GroupNorm))
    with fixed_group_norms(chain):
        assert [adapter.target for adapter in chain.layers(FixedGroupNorm)] == norms
    assert repr(chain) == before and list(chain.state_dict()) == keys
    assert all(a is b for a, b in zip(chain.layers(fl.GroupNorm), norms))
    with pytest.raises(ZeroDivisionError), fixed_group_norms(chain):
        1 / 0  # noqa: B018
    assert repr(chain) == before
