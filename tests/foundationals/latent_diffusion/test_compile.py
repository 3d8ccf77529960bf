"""Each model compiles into one graph."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1Autoencoder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Of two resolutions: they have each kind of block, and more of them would only take longer.
@pytest.mark.parametrize(
    ("make_unet", "sizes"),
    [
        ("make_small_sd1_unet", {"channels": (16, 32)}),
        ("make_small_sdxl_unet", {"channels": (16, 32), "num_attention_layers": (0, 1)}),
    ],
    ids=["sd1", "sdxl"],
)
def test_a_unet_is_one_graph_for_all_steps(
    make_unet: str,
    sizes: dict[str, Any],
    request: pytest.FixtureRequest,
    call: Callable[..., Tensor],
    conditions: Callable[..., dict[str, Tensor]],
) -> None:
    unet, counter, x = request.getfixturevalue(make_unet)(**sizes), CompileCounter(), torch.randn(2, 4, 8, 8)
    steps = [torch.tensor([501]), torch.tensor([20])]
    expected = [call(unet, x, timestep=step) for step in steps]
    compiled = torch.compile(unet, backend=counter, fullgraph=True)
    for step, y in zip(steps, expected):
        for key, value in conditions(unet, 2, timestep=step).items():
            getattr(unet, f"set_{key}")(value)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), y)
    assert counter.frame_count == 1
    assert unet.use_context("diffusion")["timestep"] is None


def test_an_autoencoder_is_one_graph() -> None:
    autoencoder, x = SD1Autoencoder(channels=(8, 8), num_groups=4), torch.randn(1, 3, 16, 24)
    z = torch.randn(1, 4, 8, 12)
    with torch.no_grad():
        for function, argument in ((autoencoder.encode, x), (autoencoder.decode, z)):
            counter, expected = CompileCounter(), function(argument)
            compiled = torch.compile(function, backend=counter, fullgraph=True)
            for _ in range(2):
                torch.testing.assert_close(compiled(argument), expected)
            assert counter.frame_count == 1
