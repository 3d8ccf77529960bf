import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from refiners.bench import main
from refiners.bench.lora_linear import DTYPES, Problem, bytes_moved, flops, make_candidates, measure
from refiners.bench.measure import Candidate, Measurement, Plan, Summary, cache_bytes, compare, time_on_cpu
from refiners.bench.shapes import MODELS, LinearShape, limit_rows, load_shapes

ROOT = Path(__file__).parent.parent
SHAPE = LinearShape("m", "q", 5, 32, 24, True, 3)


def fake_candidates(log: list[str], times: dict[str, float]) -> tuple[list[Candidate], Any]:
    """Candidates that write their names, and a timer that gives each the time that the table says."""

    def timer(work: Any) -> tuple[float, float]:
        work()
        return times[log[-1]], 2 * times[log[-1]]

    return [Candidate(name, lambda name=name: log.append(name)) for name in times], timer


@pytest.mark.parametrize(
    ("model", "layers", "biases", "tflop"), [("sd15", 184, 88, 0.4666), ("sdxl", 743, 323, 8.7084)]
)
def test_tables_hold_the_layers_and_the_arithmetic_of_a_step(
    model: str, layers: int, biases: int, tflop: float
) -> None:
    shapes = load_shapes(model)
    assert {shape.model for shape in shapes} == {model}
    assert sum(shape.count for shape in shapes) == layers
    assert sum(shape.count for shape in shapes if shape.bias) == biases
    work = sum(2 * s.rows * s.in_features * s.out_features * s.count for s in shapes)
    assert work / 1e12 == pytest.approx(tflop, abs=1e-4)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="model must be one of sd15, sdxl, got sd3"):
        load_shapes("sd3")


def test_limited_rows_merge_layers_that_became_equal() -> None:
    shapes = [SHAPE, LinearShape("m", "q", 7, 32, 24, True, 4), LinearShape("m", "q", 2, 32, 24, True, 1)]
    assert limit_rows(shapes, 4) == [
        LinearShape("m", "q", 4, 32, 24, True, 7),
        LinearShape("m", "q", 2, 32, 24, True, 1),
    ]


# A U-Net of one level below the top: 16 x 16 tokens, then 8 x 8.
BLOCK = "CLIPLCrossAttention.Chain_2.CrossAttentionBlock"
LAYOUT = {
    "TimestepEncoder.RangeEncoder.Linear_1.weight": [8, 4],
    f"DownBlocks.Chain_1.{BLOCK}.Residual_1.SelfAttention.Linear.weight": [4, 4],
    f"DownBlocks.Chain_1.{BLOCK}.Residual_1.SelfAttention.Linear.bias": [4],
    "DownBlocks.Chain_2.Downsample.Conv2d.weight": [4, 4, 3, 3],
    f"DownBlocks.Chain_10.{BLOCK}.Residual_3.Linear_1.weight": [32, 4],
    f"Sum.MiddleBlock.{BLOCK}.Residual_3.Linear_1.weight": [32, 4],
    "UpBlocks.Chain_1.Upsample.Conv2d.weight": [4, 4, 3, 3],
    f"UpBlocks.Chain_1.{BLOCK}.Residual_2.Attention.Distribute.Linear_2.weight": [4, 6],
    f"UpBlocks.Chain_2.{BLOCK}.Residual_2.Attention.Distribute.Linear_1.weight": [4, 4],
}


def write_weights(path: Path, as_safetensors: bool) -> None:
    if as_safetensors:
        from safetensors.torch import save_file

        save_file({name: torch.zeros(shape) for name, shape in LAYOUT.items()}, path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(LAYOUT))


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_the_table_follows_from_the_weights(suffix: str, tmp_path: Path) -> None:
    weights, table = tmp_path / f"unet{suffix}", tmp_path / "unet.csv"
    write_weights(weights, suffix == ".safetensors")
    script = ROOT / "benchmarks/ops/generate_shapes.py"
    options = ["--model", "m", "--image-size", "128", "--batch", "3", "--text-tokens", "7", "--output", table]
    subprocess.run([sys.executable, script, weights, *options], check=True, capture_output=True)
    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    assert lines == [
        "model,layers,rows,in_features,out_features,bias,count",
        "m,feed_forward.in,192,4,32,0,2",
        "m,cross_attention.q,768,4,4,0,1",
        "m,self_attention.out,768,4,4,1,1",
        "m,cross_attention.kv,21,6,4,0,1",
        "m,embedding,3,4,8,0,1",
    ]


def test_each_round_begins_with_another_candidate_after_a_flush() -> None:
    log: list[str] = []
    candidates, timer = fake_candidates(log, {"a": 1.0, "b": 2.0, "c": 3.0})
    compare(candidates, timer, Plan(min_time=0, min_rounds=4), lambda: log.append("."))
    assert "".join(log) == "abc.a.b.c.b.c.a.c.a.b.a.b.c"


def test_figures_belong_to_their_candidate() -> None:
    candidates, timer = fake_candidates([], {"a": 1.0, "b": 3.0})
    first, second = compare(candidates, timer, Plan(min_time=0, min_rounds=3), lambda: None)
    assert first == Measurement("a", Summary(1.0, 1.0, 0.0), Summary(2.0, 2.0, 0.0), 1.0, 3)
    assert second == Measurement("b", Summary(3.0, 3.0, 0.0), Summary(6.0, 6.0, 0.0), 3.0, 3)


def test_slow_moments_cancel_in_the_ratio() -> None:
    times = iter([1.0, 2.0, 20.0, 10.0, 5.0, 10.0])  # a round each, the second one begins with b
    candidates = [Candidate("a", int), Candidate("b", int)]
    _, second = compare(candidates, lambda _: (next(times), 1.0), Plan(min_time=0, min_rounds=3), lambda: None)
    assert second.ratio == 2.0
    assert second.wall == Summary(2.0, 10.0, 0.9)


def test_it_runs_until_the_fastest_has_its_time_or_the_rounds_are_over() -> None:
    candidates, timer = fake_candidates([], {"a": 0.25, "b": 1.0})
    assert compare(candidates, timer, Plan(2, min_rounds=1), lambda: None)[0].rounds == 8
    assert compare(candidates, timer, Plan(100, min_rounds=1, max_rounds=3), lambda: None)[0].rounds == 3


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates must not be empty"):
        compare([], time_on_cpu, Plan(0), lambda: None)


def test_the_largest_data_cache_counts(tmp_path: Path) -> None:
    for i, (kind, size) in enumerate(
        [("Data", "32K"), ("Instruction", "64M"), ("Unified", "2M\n"), ("Unified", "odd")]
    ):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        (folder / "type").write_text(f"{kind}\n")
        (folder / "size").write_text(size)
    assert cache_bytes(tmp_path) == 2 << 20
    assert cache_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_candidates_compute_the_layer_and_its_update(dtype: str) -> None:
    bare, ours, separate = make_candidates(Problem(SHAPE, 4, dtype, "cpu"))
    results = [candidate.run() for candidate in (bare, ours, separate)]
    assert all(isinstance(y, torch.Tensor) and y.shape == (5, 24) and y.dtype == DTYPES[dtype] for y in results)
    torch.testing.assert_close(results[1], results[2], rtol=0.05, atol=0.05)
    assert (results[0] - results[2]).abs().max() > 0.1  # the update is no zero


def test_a_wrong_operator_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refiners.bench.lora_linear.lora_linear", lambda x, weight, *_: x @ weight.T)
    with pytest.raises(RuntimeError, match="lora_linear is wrong: it differs from separate operations by"):
        measure(Problem(SHAPE, 4, "float32", "cpu"), Plan(0))


def test_arithmetic_and_traffic_are_counted() -> None:
    problem = Problem(SHAPE, 4, "bfloat16", "cpu")
    assert flops(problem, bare=True) == 2 * 5 * 32 * 24
    assert flops(problem, bare=False) == 2 * 5 * (32 * 24 + 4 * 32 + 24 * 4)
    assert bytes_moved(problem, bare=True) == 2 * (5 * 32 + 32 * 24 + 24 + 5 * 24)
    assert bytes_moved(problem, bare=False) == bytes_moved(problem, bare=True) + 2 * 4 * (32 + 24)


def test_the_command_writes_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refiners.bench.command.load_shapes", lambda model: [SHAPE] if model == "sd15" else [])
    files = {"--table": tmp_path / "t.txt", "--json": tmp_path / "t.json"}
    options = [str(part) for pair in files.items() for part in pair]
    assert main(["--model", "sd15,sdxl", "--rank", "2", "--dtype", "float32", "--rows", "4", *options]) == 0
    printed = capsys.readouterr().out
    assert printed == files["--table"].read_text()
    assert "m 4x32→24+b" in printed and "all layers of" in printed
    report = json.loads(files["--json"].read_text())
    assert [candidate["name"] for candidate in report["cases"][0]["candidates"]] == ["bare", "lora_linear", "separate"]
    assert report["totals"][0]["layers"] == 3
    assert report["command"] == " ".join(
        ["python -m refiners bench --model sd15,sdxl --rank 2 --dtype float32 --rows 4", *options]
    )


MISTAKES = {
    "--foo": "unrecognized arguments: --foo; the options are --help, --model",
    "--model=sd3": "argument --model: choose any of sd15, sdxl; got 'sd3'",
    "--dtype=int8": "argument --dtype: choose any of float32, bfloat16; got 'int8'",
    "--device=tpu": "argument --device: choose any of cpu, cuda; got 'tpu'",
    "--rank=16,0": "argument --rank: expected a whole number of at least 1, got '0'",
    "--rows=x": "argument --rows: expected a whole number of at least 1, got 'x'",
    "--min-time=nan": "argument --min-time: expected a number above 0, got 'nan'",
    "--json=/nowhere/x": "argument --json: cannot write '/nowhere/x': there is no folder /nowhere",
    "--table=/": "argument --table: cannot write '/': it is a folder",
}


@pytest.mark.parametrize("option", MISTAKES)
def test_a_bad_option_is_one_line_that_lists_what_is_valid(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m refiners bench: error: {MISTAKES[option]}")
    assert error.count("\n") == 1


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--full" in capsys.readouterr().out


def test_the_cpp_benchmark_has_the_schemas_of_the_operators() -> None:
    source = (ROOT / "benchmarks/ops/lora_linear_torch.cpp").read_text()
    defined = [
        "".join(re.findall(r'"(.*?)"', call)) for call in re.findall(r"library\.def\((.*?)\);", source, re.DOTALL)
    ]
    ops = torch.ops.refiners
    operators = (ops.linear, ops.lora_linear, ops._lora_linear_portable)
    assert [f"refiners::{schema}" for schema in defined] == [str(operator.default._schema) for operator in operators]


def test_every_model_has_a_table() -> None:
    assert sorted(path.stem for path in (ROOT / "python/refiners/bench/shapes").glob("*.csv")) == sorted(MODELS)
