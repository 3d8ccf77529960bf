import gc
import threading

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from refiners.ops import lora_block, lora_linear, prepare_lora_block
from refiners.ops.library import native
from refiners.ops.lora_block import LoraBlockCache, make_block


def tensors(ranks=(3, 4)) -> tuple[Tensor, list[Tensor]]:
    return torch.randn(6, 8), [torch.randn(6, rank) for rank in ranks]


@pytest.fixture
def cache() -> LoraBlockCache:
    return LoraBlockCache(limit=lambda _: 1 << 20)


@pytest.mark.parametrize(("ranks", "columns"), [((3, 4), 8), ((8,), 8), ((8, 1), 16), ((0,), 0)])
def test_a_block_is_the_weight_the_updates_and_zeros_up_to_eight(ranks, columns):
    weight, ups = tensors(ranks)
    block = make_block(weight, ups)
    assert block.shape == (6, 8 + columns)
    assert torch.equal(block[:, :8], weight)
    assert torch.equal(block[:, 8 : 8 + sum(ranks)], torch.cat(ups, dim=1))
    assert not block[:, 8 + sum(ranks) :].any()


def test_a_block_is_made_once(cache):
    weight, ups = tensors()
    assert cache.get(weight, ups) is cache.get(weight, ups)
    assert len(cache) == 1
    assert cache.bytes == 6 * 16 * 4


@pytest.mark.parametrize("change", [lambda w, u: w.add_(1), lambda w, u: u[1].mul_(2), lambda w, u: u[0].fill_(0)])
def test_an_in_place_change_changes_the_block(change, cache):
    weight, ups = tensors()
    cache.get(weight, ups)
    change(weight, ups)
    block = cache.get(weight, ups)
    assert block is not None
    assert torch.equal(block, make_block(weight, ups))
    assert len(cache) == 1


def test_other_values_of_updates_are_written_into_their_block(cache):
    weight, ups = tensors()
    block = cache.get(weight, ups)
    ups[1].normal_()
    assert cache.get(weight, ups) is block and cache.get(weight, ups) is block
    assert torch.equal(block, make_block(weight, ups))
    ups[0].data = torch.randn(6, 3)
    assert cache.get(weight, ups) is block
    assert torch.equal(block, make_block(weight, ups))
    ups[0].data = torch.randn(6, 9)  # of another rank
    assert cache.get(weight, ups).shape == (6, 8 + 16)
    assert len(cache) == 1 and cache.bytes == 6 * 24 * 4


def test_new_data_or_a_cast_makes_a_new_block(cache):
    weight, ups = torch.nn.Linear(8, 6).requires_grad_(False).weight, tensors()[1]
    cache.get(weight, ups)
    weight.data = torch.randn(6, 8)
    assert torch.equal(cache.get(weight, ups), make_block(weight, ups))
    weight.data, ups[0].data, ups[1].data = weight.data.double(), ups[0].data.double(), ups[1].data.double()
    assert cache.get(weight, ups).dtype == torch.float64
    assert len(cache) == 1


@pytest.mark.parametrize("dropped", ["weight", "up"])
def test_a_block_goes_with_its_tensors(dropped, cache):
    weight, ups = tensors()
    cache.get(weight, ups)
    if dropped == "weight":
        del weight
    else:
        ups.clear()
    gc.collect()
    assert len(cache) == 0
    assert cache.bytes == 0


def test_what_no_longer_fits_is_not_kept_and_evicts_nothing():
    cache = LoraBlockCache(limit=lambda _: 2 * 6 * 16 * 4)
    first, second, third = tensors(), tensors(), tensors()
    kept = [cache.get(*first), cache.get(*second)]
    assert cache.get(*third) is None
    assert all(cache.get(*given) is block for given, block in zip((first, second), kept))
    cache.drop(first[0])
    assert cache.bytes == 6 * 16 * 4
    assert cache.get(*third) is not None


def test_an_address_that_is_used_again_is_no_old_block(cache):
    weight, ups = tensors()
    for _ in range(20):
        weight.data = torch.randn_like(weight)  # the old memory would be the first to be given out again
        weight.data = torch.randn_like(weight)
        assert torch.equal(cache.get(weight, ups), make_block(weight, ups))


def test_what_exceeds_the_limit_is_not_made():
    cache = LoraBlockCache(limit=lambda _: 100)
    assert cache.get(*tensors()) is None
    assert len(cache) == 0


def test_clear_drops_all(cache):
    cache.get(*(kept := tensors()))
    cache.clear()
    assert kept
    assert (len(cache), cache.bytes) == (0, 0)


def test_threads_share_the_cache():
    cache = LoraBlockCache(limit=lambda _: 3 * 6 * 16 * 4)
    pairs = [tensors() for _ in range(6)]
    wrong: list[int] = []

    def work() -> None:
        for i in range(300):
            weight, ups = pairs[i % 6]
            block = cache.get(weight, ups)
            if block is not None and not torch.equal(block, make_block(weight, ups)):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (len(cache), cache.bytes) == (3, 3 * 6 * 16 * 4)


@pytest.fixture
def block_is_used(monkeypatch, cache):
    monkeypatch.setattr(lora_block.native, "takes_lora_block", lambda dtype, device: True)
    monkeypatch.setattr(lora_block, "lora_block_cache", cache)


def test_prepare_gives_a_block_where_one_is_used(block_is_used):
    weight, ups = tensors()
    assert torch.equal(prepare_lora_block(weight, ups), make_block(weight, ups))


def test_prepare_gives_none_where_a_change_would_go_unseen(block_is_used):
    with torch.inference_mode():
        weight, ups = tensors()
        assert prepare_lora_block(weight, ups) is None


def test_prepare_gives_none_while_training_and_a_block_without_gradients(block_is_used):
    weight, ups = tensors()
    ups[0].requires_grad_()
    assert prepare_lora_block(weight, ups) is None
    with torch.no_grad():
        block = prepare_lora_block(weight, ups)
    assert block is not None
    assert not block.requires_grad


def test_prepare_gives_none_without_updates(block_is_used):
    assert prepare_lora_block(tensors()[0], []) is None


def test_prepare_asks_the_library(needs_native):
    weight, ups = tensors()
    used = native.explain_lora_linear("float32", has_block=True)[0] == "block"
    assert (prepare_lora_block(weight, ups) is not None) == used


def test_a_block_changes_no_gradient(make_inputs):
    inputs = make_inputs((3, 5), 8, 6, (2,))
    up = inputs.ups[0].requires_grad_()
    block = make_block(inputs.weight, inputs.ups)
    with_block = torch.autograd.grad(lora_linear(*inputs, block).sum(), up)
    assert_close(with_block, torch.autograd.grad(lora_linear(*inputs).sum(), up))
