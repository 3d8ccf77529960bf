import re

import pytest
import torch

from refiners.ops import lora_linear

WRONG = {
    "x": [
        (torch.ones(2, 3, 8, dtype=torch.int64), TypeError, "x must be of a floating dtype, got torch.int64"),
        (torch.tensor(1.0), ValueError, "x must have at least one dimension, got shape ()"),
    ],
    "weight": [
        (torch.ones(6, 7), ValueError, "weight must be (out_features, 8), got (6, 7)"),
        (torch.ones(8), ValueError, "weight must be (out_features, 8), got (8,)"),
        (torch.ones(6, 8).half(), TypeError, "weight must be torch.float32, the dtype of x, got torch.float16"),
        (torch.ones(6, 8, device="meta"), ValueError, "weight must be on cpu, the device of x, got meta"),
    ],
    "bias": [
        (torch.ones(8), ValueError, "bias must be (6,), got (8,)"),
        (torch.ones(6).double(), TypeError, "bias must be torch.float32, the dtype of x, got torch.float64"),
    ],
    "downs": [
        ([torch.ones(4, 8)], ValueError, "ups must be as many as downs (1), got 2"),
        ([torch.ones(4, 8), torch.ones(2, 9)], ValueError, "downs[1] must be (2, 8), got (2, 9)"),
        ([torch.ones(8), torch.ones(2, 8)], ValueError, "downs[0] must be (rank, 8), got (8,)"),
        ([torch.ones(4, 8), torch.ones(2, 8).half()], TypeError, "downs[1] must be torch.float32, the dtype of x"),
    ],
    "ups": [
        ([torch.ones(6, 4), torch.ones(6, 3)], ValueError, "ups[1] must be (6, 2), got (6, 3)"),
        ([torch.ones(6, 4), torch.ones(6, 2, device="meta")], ValueError, "ups[1] must be on cpu, the device of x"),
    ],
    "scale": [
        (torch.ones(1), ValueError, "scale must be (2,) or (2, 2) or (2, 2, 3), got (1,)"),
        (torch.ones(2, 3), ValueError, "scale must be (2,) or (2, 2) or (2, 2, 3), got (2, 3)"),
        (torch.ones(2, 2, 3, 8), ValueError, "scale must be (2,) or (2, 2) or (2, 2, 3), got (2, 2, 3, 8)"),
        (torch.tensor(1.0), ValueError, "scale must be (2,) or (2, 2) or (2, 2, 3), got ()"),
        (torch.ones(2, dtype=torch.int32), TypeError, "scale must be of a floating dtype, got torch.int32"),
        (torch.ones(2, device="meta"), ValueError, "scale must be on cpu, the device of x, got meta"),
    ],
    "block": [(torch.ones(6, 14), ValueError, "block must be (6, 16), got (6, 14)")],
}


def right_arguments():
    return {
        "x": torch.ones(2, 3, 8),
        "weight": torch.ones(6, 8),
        "bias": torch.ones(6),
        "downs": [torch.ones(4, 8), torch.ones(2, 8)],
        "ups": [torch.ones(6, 4), torch.ones(6, 2)],
        "scale": torch.ones(2),
        "block": None,
    }


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases])
def test_an_argument_that_disagrees_is_named(name, case):
    value, error, message = case
    with pytest.raises(error, match=re.escape(f"lora_linear: {message}")):
        lora_linear(**{**right_arguments(), name: value})


def test_right_arguments_pass():
    assert lora_linear(**right_arguments()).shape == (2, 3, 6)


def wrong_calls():
    right = right_arguments()
    yield {**right, "weight": torch.ones(6, 7)}
    yield {**right, "downs": [torch.ones(4, 9), torch.ones(2, 8)]}
    yield {**right, "ups": [torch.ones(5, 4), torch.ones(6, 2)]}
    yield {**right, "ups": [torch.ones(6, 4)]}
    yield {**right, "downs": [torch.ones(4, 8).half(), torch.ones(2, 8)]}
    yield {**right, "scale": torch.ones(2, 3)}
    yield {**right, "scale": torch.tensor(1.0)}
    yield {**right, "block": torch.ones(6, 14)}


@pytest.mark.parametrize("arguments", list(wrong_calls()))
def test_the_bare_operator_keeps_memory_safe(arguments, needs_native):
    with pytest.raises(RuntimeError):
        torch.ops.refiners.lora_linear(*arguments.values())
