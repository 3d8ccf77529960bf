"""Whole models from checkpoints: the right class, its sizes, its solver, and what is said of the wrong one."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from refiners.conversion.pretrained import load_pretrained
from refiners.foundationals.latent_diffusion import (
    LatentDiffusionModel,
    StableDiffusion_1,
    StableDiffusion_1_Inpainting,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DPMSolver,
    EulerAncestral,
    LCMSolver,
    ModelPredictionType,
    NoiseSchedule,
    Solver,
)
from refiners.generate.solvers import make_solver


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small checkpoints of each kind, as diffusers writes them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    checkpoints = import_module("checkpoints")
    sys.path.pop(0)
    root = tmp_path_factory.mktemp("checkpoints")
    kinds = ("SD15", "SD15_INPAINTING", "SDXL")
    return {
        kind: checkpoints.write_folder(root / kind, checkpoints.small(getattr(checkpoints, kind))) for kind in kinds
    }


def with_scheduler(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """Copy a checkpoint, and change what its folder says of the noise."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copy


KINDS = {"SD15": StableDiffusion_1, "SD15_INPAINTING": StableDiffusion_1_Inpainting, "SDXL": StableDiffusion_XL}


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_is_told_by_the_checkpoint(kind: str, folders: dict[str, Path]) -> None:
    model = load_pretrained(LatentDiffusionModel, folders[kind], dtype=torch.bfloat16)
    assert type(model) is KINDS[kind]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())
    kernels = [parameter for parameter in model.unet.parameters() if parameter.ndim == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert type(model.solver) is (DDIM if kind == "SDXL" else DPMSolver)
    assert model.lda.encoder_scale == (0.13025 if kind == "SDXL" else 0.18215)


def test_a_subclass_fits_and_another_class_does_not(folders: dict[str, Path]) -> None:
    assert type(StableDiffusion_1.from_pretrained(folders["SD15_INPAINTING"])) is StableDiffusion_1_Inpainting
    with pytest.raises(TypeError, match="holds a StableDiffusion_XL, not a StableDiffusion_1: load it by that class"):
        StableDiffusion_1.from_pretrained(folders["SDXL"])
    with pytest.raises(TypeError, match="holds a StableDiffusion_1, not a StableDiffusion_1_Inpainting"):
        StableDiffusion_1_Inpainting.from_pretrained(folders["SD15"])


def test_a_solver_may_be_given(folders: dict[str, Path]) -> None:
    solver = DDIM(7)
    assert StableDiffusion_1.from_pretrained(folders["SD15"], solver=solver).solver is solver


def test_the_solver_knows_what_the_model_predicts(folders: dict[str, Path], tmp_path: Path) -> None:
    changes = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "num_train_timesteps": 500,
    }
    params = StableDiffusion_XL.from_pretrained(with_scheduler(folders["SDXL"], tmp_path, **changes)).solver.params
    assert params.model_prediction_type is ModelPredictionType.VELOCITY and params.rescale_zero_terminal_snr
    assert params.noise_schedule is NoiseSchedule.UNIFORM and params.num_train_timesteps == 500
    assert (params.initial_diffusion_rate, params.final_diffusion_rate) == (1e-4, 0.02)


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("LCMScheduler", LCMSolver),
        ("EulerAncestralDiscreteScheduler", EulerAncestral),
        ("PNDMScheduler", DPMSolver),
    ],
)
def test_distilled_models_have_the_solver_that_they_need(
    class_name: str, expected: type[Solver], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_scheduler(folders["SD15"], tmp_path, _class_name=class_name, timestep_spacing="trailing")
    solver = StableDiffusion_1.from_pretrained(folder).solver
    assert type(solver) is expected
    assert solver.rebuild(4).timesteps[0] == 999


@pytest.mark.parametrize(
    "change", [{"timestep_spacing": "trailing"}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}]
)
def test_models_that_need_the_last_timestep_begin_there(
    change: dict[str, object], folders: dict[str, Path], tmp_path: Path
) -> None:
    solver = StableDiffusion_XL.from_pretrained(with_scheduler(folders["SDXL"], tmp_path, **change)).solver
    assert solver.timesteps[0] == 999 == make_solver("euler", solver).timesteps[0]
    assert solver.rebuild(1).timesteps.tolist() == [999]


def test_parts_may_be_given(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = StableDiffusion_1.from_pretrained(folders["SD15"])
    copy = Path(shutil.copytree(folders["SD15"], tmp_path / "copy"))
    shutil.rmtree(copy / "vae")
    shutil.rmtree(copy / "text_encoder")
    parts = {"lda": whole.lda, "clip_text_encoder": whole.clip_text_encoder}
    model = StableDiffusion_1.from_pretrained(copy, **parts)
    assert model.lda is whole.lda and model.clip_text_encoder is whole.clip_text_encoder


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("unet", "attention_head_dim", [2, 2], r"attention_head_dim must be a positive whole number, got \[2, 2\]"),
        ("vae", "norm_num_groups", None, "norm_num_groups must be a positive whole number, got None"),
        ("text_encoder", "hidden_act", "gelu_new", "hidden_act must be gelu or quick_gelu, got 'gelu_new'"),
    ],
)
def test_a_wrong_configuration_is_named(
    part: str, key: str, value: object, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folders["SD15"], tmp_path / "copy"))
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=message):
        StableDiffusion_1.from_pretrained(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule must be one of .*, got 'squaredcos_cap_v2'"),
        ({"prediction_type": "edm"}, "predicts by 'edm', for which there is no solver: give one"),
    ],
)
def test_an_unknown_noise_is_named(
    change: dict[str, str], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        StableDiffusion_XL.from_pretrained(with_scheduler(folders["SDXL"], tmp_path, **change))


@pytest.mark.parametrize("kind, name", [("SD15", "vae"), ("SD15", "text_encoder"), ("SDXL", "text_encoder_2")])
def test_a_missing_part_is_named(kind: str, name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders[kind], tmp_path / "copy"))
    shutil.rmtree(copy / name)
    part = "lda" if name == "vae" else "clip_text_encoder"
    with pytest.raises(ValueError, match=f"lacks what a {KINDS[kind].__name__} needs besides: {part}"):
        load_pretrained(LatentDiffusionModel, copy)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StableDiffusion_1.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": torch.int8}, TypeError, "dtype must be one of torch.float32, .*, got torch.int8"),
        ({"dtype": torch.float8_e4m3fn}, TypeError, "dtype must be one of .*, got torch.float8_e4m3fn"),
        ({"dtype": "float16"}, TypeError, "dtype must be one of .*, got 'float16'"),
        ({"dtype": None}, TypeError, "dtype must be one of .*, got None"),
        ({"device": "gpu"}, ValueError, "device must be one that is here, such as 'cpu', got 'gpu': "),
        ({"device": "cuda:99"}, ValueError, "device must be one that is here, such as 'cpu', got 'cuda:99': "),
        ({"device": None}, TypeError, "device must be a torch.device or its name, got None"),
        ({"device": 1.5}, TypeError, "device must be a torch.device or its name, got 1.5"),
        ({"solver": "euler"}, TypeError, "solver must be a Solver, got 'euler'"),
        ({"solver": DDIM}, TypeError, "solver must be a Solver, got ABCMeta"),
        ({"lda": torch.nn.Identity()}, TypeError, "lda must be a Chain, got Identity"),
        ({"clip_text_encoder": "x"}, TypeError, "clip_text_encoder must be a Chain, got 'x'"),
    ],
    ids=str,
)
def test_arguments_are_checked_before_anything_is_read(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """There is nothing at the path, which would be told next."""
    with pytest.raises(error, match=message):
        StableDiffusion_1.from_pretrained(tmp_path / "nothing", **arguments)
