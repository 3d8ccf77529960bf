import json

import pytest
import torch

from refiners.ops import lora_linear
from refiners.ops.library import native
from refiners.ops.lora_block import make_block

BF16_FEATURES = {"avx2": True, "avx512": True, "avx512_bf16": True}
AMX_FEATURES = {**BF16_FEATURES, "amx_bf16": True}


@pytest.fixture
def host():
    return pytest.importorskip("refiners._host", exc_type=ImportError)


@pytest.fixture(params=["library", "block"])
def plan(request, needs_native):
    """A plan that this CPU would not choose, forced for one test."""
    if native.isa == "portable":
        pytest.skip("a plan is forced only where there are kernels")
    native.force_lora_linear_plan(request.param)
    yield request.param
    native.force_lora_linear_plan(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lead", [0, 1, 2])
@pytest.mark.parametrize("ranks", [(4,), (3, 6), (16, 0, 1), (40,)], ids=str)
def test_the_plans_of_other_cpus_match_the_reference(ranks, lead, dtype, plan, make_inputs, assert_agrees):
    inputs = make_inputs((7, 5), 33, 18, ranks, lead=lead, dtype=dtype)
    assert native.explain_lora_linear(str(dtype).removeprefix("torch."), has_block=True)[0] == plan
    assert_agrees(lora_linear(*inputs, make_block(inputs.weight, inputs.ups)), inputs)


def test_the_block_plan_reads_the_block(plan, make_inputs):
    inputs = make_inputs((7,), 33, 18, (4,))
    block = torch.zeros(18, 33 + 8)
    y = lora_linear(*inputs, block)
    assert torch.equal(y, inputs.bias.expand(7, 18)) == (plan == "block")


@pytest.mark.parametrize("plan", ["block"], indirect=True)
def test_without_a_block_the_block_plan_is_the_library_plan(plan, make_inputs, reference):
    inputs = make_inputs((7,), 33, 18, (4,))
    assert native.explain_lora_linear("float32", has_block=False)[0] == "library"
    assert (lora_linear(*inputs).double() - reference(*inputs)).norm() <= 1e-5


@pytest.mark.parametrize(
    ("isa", "features", "dtype", "has_block", "plan"),
    [
        ("portable", AMX_FEATURES, "bfloat16", True, "portable"),
        ("avx2", {"avx2": True}, "float64", False, "portable"),
        ("avx2", {"avx2": True}, "float32", True, "update"),
        ("avx2", {"avx2": True}, "bfloat16", True, "update"),
        ("avx2", AMX_FEATURES, "bfloat16", True, "update"),  # forced: not what the library uses, but what was asked for
        ("avx512", {"avx2": True, "avx512": True}, "bfloat16", True, "update"),
        ("avx512", BF16_FEATURES, "bfloat16", True, "block"),
        ("avx512", BF16_FEATURES, "bfloat16", False, "library"),
        ("avx512", BF16_FEATURES, "float16", True, "update"),
        ("amx", AMX_FEATURES, "bfloat16", True, "block"),
        ("amx", AMX_FEATURES, "float32", True, "update"),
        ("amx", {**AMX_FEATURES, "amx_fp16": True}, "float16", True, "block"),
    ],
)
def test_the_plan_on_a_cpu_follows_from_what_its_library_multiplies_fast(isa, features, dtype, has_block, plan, host):
    found, reason = host.choose_lora_linear_cpu_plan(isa, features, dtype, has_block)
    assert found == plan
    assert reason


@pytest.mark.parametrize(
    ("dtype", "adapters", "has_block", "plan"),
    [
        ("bfloat16", 1, True, "block"),
        ("float32", 3, False, "library"),
        ("float64", 1, True, "portable"),
        ("float16", 33, True, "portable"),
    ],
)
def test_the_plan_on_cuda(dtype, adapters, has_block, plan, host):
    assert host.choose_lora_linear_cuda_plan(dtype, adapters, has_block)[0] == plan


@pytest.mark.parametrize(
    ("arguments", "vector"),
    [
        ((2, 1280, 256, 1280, 512, 1296), 8),
        ((4, 1280, 256, 1280, 512, 1296), 4),
        ((2, 1284, 256, 1284, 512, 1304), 1),  # x: rows start between packs
        ((2, 1280, 258, 1280, 512, 1296), 1),  # x: the first does
        ((2, 1280, 256, 1280, 520, 1296), 1),  # the same of the output
        ((2, 1280, 256, 1280, 512, 1290), 1),
    ],
)
def test_rows_move_in_packs_of_16_bytes_where_all_start_on_16(arguments, vector, host):
    assert host.choose_lora_linear_pack_config(*arguments) == (vector, 8)


def test_the_best_instruction_set_follows_from_the_features(host):
    assert host.best_cpu_isa({}) == "portable"
    if "avx2" in str(host.build_record()):
        assert host.best_cpu_isa({"avx2": True}) == "avx2"
        assert host.best_cpu_isa(BF16_FEATURES) == "avx512"
        assert host.best_cpu_isa(AMX_FEATURES) == "amx"


def test_an_unknown_instruction_set_raises(host):
    with pytest.raises(ValueError, match="isa must be portable, avx2, avx512 or amx, got sse9"):
        host.choose_lora_linear_cpu_plan("sse9", {}, "float32", False)
    with pytest.raises(ValueError, match="isa must be one of portable, avx2, avx512, amx, got sse9"):
        native.use_isa("sse9")


def test_the_host_module_and_the_library_were_built_together(host, needs_native):
    assert json.loads(host.build_record()) == native.record._asdict()


def test_switched_off_kernels_leave_the_work_to_torch(isa, needs_native, make_inputs):
    inputs = make_inputs((9,), 32, 24, (4,), dtype=torch.bfloat16)
    portable = torch.ops.refiners._lora_linear_portable(*inputs)
    native.use_kernels("lora_linear", False)
    try:
        assert torch.equal(lora_linear(*inputs), portable)
        assert native.explain_lora_linear("bfloat16", False)[0] == "portable"
    finally:
        native.use_kernels("lora_linear", True)
