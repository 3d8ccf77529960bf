"""What all solvers have in common."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    LCMSolver,
    ModelPredictionType,
    NoiseSchedule,
    Solver,
    SolverParams,
    TimestepSpacing,
    UniPC,
)


def sde(*args: Any, **kwargs: Any) -> DPMSolver:
    return DPMSolver(*args, params=SolverParams(sde_variance=1.0), **kwargs)


SOLVERS: dict[str, Callable[..., Any]] = {
    "DDIM": DDIM,
    "DDPM": DDPM,
    "DPMSolver": DPMSolver,
    "DPMSolver-sde": sde,
    "Euler": Euler,
    "EulerAncestral": EulerAncestral,
    "Heun": Heun,
    "LCMSolver": LCMSolver,
    "UniPC": UniPC,
}
STOCHASTIC = {"DDPM", "DPMSolver-sde", "EulerAncestral", "LCMSolver"}
SIGMA_SPACE = {"Euler", "EulerAncestral", "Heun"}


@pytest.fixture(params=SOLVERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(name: str) -> Callable[..., Solver]:
    return SOLVERS[name]


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 4, 3, 2)), generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def steps_of(solver: Solver, x: Tensor, generator: Any = None) -> Tensor:
    """Run the solver with a prediction that depends on latents, step and nothing else of the batch."""
    for step in solver.inference_steps:
        x = solver(x, torch.tanh(solver.scale_model_input(x, step) + step / 10), step, generator=generator)
    return x


# The contract


def test_steps_are_those_of_inference(make: Callable[..., Solver]) -> None:
    solver = make(7, first_inference_step=2)
    assert solver.all_steps == [0, 1, 2, 3, 4, 5, 6]
    assert solver.inference_steps == [2, 3, 4, 5, 6]
    assert solver.timesteps.shape == (7,)
    assert (solver.timesteps.diff() <= 0).all()


def test_tensors_are_not_in_the_state_dict(make: Callable[..., Solver]) -> None:
    solver = make(5)
    assert isinstance(solver, fl.Module)
    assert solver.state_dict() == {} and list(solver.parameters()) == [] and list(solver.buffers()) == []


@pytest.mark.parametrize("step", [-1, 1, 5, 6])
def test_steps_are_checked(make: Callable[..., Solver], step: int) -> None:
    solver, x = make(5, first_inference_step=2), latents()
    with pytest.raises(AssertionError, match=f"invalid step {step}: must be from 2 to 4"):
        solver(x, x, step)
    if step != 1:
        for method in (solver.add_noise, solver.remove_noise, solver.predict_data, solver.predict_noise):
            with pytest.raises(AssertionError, match=f"invalid step {step}: must be from 0 to 4"):
                method(x, x, step)
        if step != -1:
            with pytest.raises(AssertionError, match=f"invalid step {step}"):
                solver.scale_model_input(x, step)


def test_a_step_is_an_integer(make: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    with pytest.raises(TypeError, match=r"step must be an integer, got 1\.0"):
        solver(x, x, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_inference_steps must be an integer, got 5.0"):
        make(5.0)


@pytest.mark.parametrize("first", [-1, 5])
def test_the_first_step_is_checked(make: Callable[..., Solver], first: int) -> None:
    with pytest.raises(ValueError, match=f"first_inference_step must be from 0 to 4, got {first}"):
        make(5, first_inference_step=first)


def test_shapes_are_checked(make: Callable[..., Solver]) -> None:
    solver = make(5)
    with pytest.raises(ValueError, match=r"predicted_noise must have the shape \(2, 4, 3, 2\), got \(1, 4, 3, 2\)"):
        solver(latents(), latents(1, 4, 3, 2), 0)


def test_inputs_are_not_written_to(make: Callable[..., Solver]) -> None:
    solver, x, prediction = make(4), latents(), latents(seed=1)
    for step in solver.inference_steps:
        before, predicted = x.clone(), prediction.clone()
        y = solver(x, prediction, step)
        assert y.data_ptr() not in (x.data_ptr(), prediction.data_ptr())
        assert torch.equal(x, before) and torch.equal(prediction, predicted)
        x = y


# Noise


def test_add_noise_mixes_by_the_level_of_the_step(name: str, make: Callable[..., Solver]) -> None:
    solver, x, noise = make(5, dtype=torch.float64), latents().double(), latents(seed=1).double()
    for step in solver.all_steps:
        if name in SIGMA_SPACE:
            expected = x + solver.sigmas[step] * noise
        elif name.startswith(("DPM", "UniPC")):
            expected = solver.cumulative_scale_factors[step] * x + solver.noise_std[step] * noise
        else:
            timestep = int(solver.timesteps[step])
            expected = solver.cumulative_scale_factors[timestep] * x + solver.noise_std[timestep] * noise
        assert_close(solver.add_noise(x, noise, step), expected)
        assert_close(solver.remove_noise(expected, noise, step), x)


def test_add_noise_to_each_sample_at_its_step(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver, x, noise = make(5, dtype=dtype), latents(3, 4, 2, 2).to(dtype), latents(3, 4, 2, 2, seed=1).to(dtype)
    noisy = solver.add_noise(x, noise, [4, 0, 2])
    assert noisy.dtype == dtype
    for sample, step in enumerate([4, 0, 2]):
        assert_close(noisy[sample], solver.add_noise(x[sample], noise[sample], step))
    with pytest.raises(AssertionError, match="x, noise, and step must have the same length, got 3, 3 and 2"):
        solver.add_noise(x, noise, [0, 1])
    with pytest.raises(AssertionError, match="invalid step 5"):
        solver.add_noise(x, noise, [0, 1, 5])


def test_initial_latents_are_noise_or_a_noisy_image(name: str, make: Callable[..., Solver]) -> None:
    solver, noise, image = make(5, first_inference_step=2), latents(seed=1), latents()
    assert_close(solver.initial_latents(noise, image), solver.add_noise(image, noise, 2))
    assert_close(solver.initial_latents(noise), solver.scale_model_input(noise, step=-1))
    if name in SIGMA_SPACE:
        assert_close(solver.initial_latents(noise), noise * solver.init_noise_sigma)
        seen = solver.scale_model_input(solver.initial_latents(noise, image), 2)
        sigma = solver.sigmas[2]
        assert_close(seen, (image + sigma * noise) / (sigma**2 + 1).sqrt())
    else:
        assert solver.initial_latents(noise) is noise


@pytest.mark.parametrize("prediction", ModelPredictionType)
def test_a_perfect_model_leads_to_its_image(name: str, prediction: ModelPredictionType) -> None:
    params = SolverParams(model_prediction_type=prediction, sde_variance=float(name == "DPMSolver-sde"))
    solver = SOLVERS[name.removesuffix("-sde")](9, params=params, dtype=torch.float64)
    image = latents().double()
    x = solver.initial_latents(latents(seed=1).double(), image)
    for step in solver.inference_steps:
        # Levels of the latents, from `add_noise` itself.
        one = torch.ones(1, dtype=torch.float64)
        a, s = solver.add_noise(one, 0 * one, step), solver.add_noise(0 * one, one, step)
        noise = (x - a * image) / s
        size = (a**2 + s**2).sqrt()
        output = {
            ModelPredictionType.NOISE: noise,
            ModelPredictionType.SAMPLE: image,
            ModelPredictionType.VELOCITY: (a * noise - s * image) / size,
        }[prediction]
        assert_close(solver.predict_data(x, output, step), image)
        assert_close(solver.predict_noise(x, output, step), noise)
        x = solver(x, output, step)
    assert (x - image).norm() < 0.2 * image.norm()  # what ends at timestep 0 keeps its noise
    if name in SIGMA_SPACE | {"DDPM", "LCMSolver"}:
        assert_close(x, image)


# Random numbers


def test_each_sample_can_have_its_generator(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    x = latents(3, 4, 2, 2).to(dtype)
    together = steps_of(make(5), x, generators(7, 8, 9))
    alone = [steps_of(make(5), x[i : i + 1], generators(seed)) for i, seed in enumerate((7, 8, 9))]
    assert torch.equal(together, torch.cat(alone))


def test_one_generator_serves_the_batch(name: str, make: Callable[..., Solver]) -> None:
    x = latents()
    one, same, other = (steps_of(make(5), x, generators(seed)[0]) for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (name not in STOCHASTIC)
    torch.manual_seed(7)
    assert torch.equal(steps_of(make(5), x), one)  # the default generator draws the same


def test_generators_are_checked(make: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    with pytest.raises(ValueError, match="one item for each of the 2 samples, got 3"):
        solver(x, x, 0, generator=generators(1, 2, 3))
    with pytest.raises(TypeError, match="must be a torch.Generator or a list of them, got 42"):
        solver(x, x, 0, generator=42)  # type: ignore[arg-type]


# Dtypes and devices


def test_latents_keep_their_dtype(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver, x = make(4), latents().to(dtype)  # the solver itself is float32
    image = latents(seed=1).to(dtype)
    assert solver.initial_latents(x).dtype == solver.initial_latents(x, image).dtype == dtype
    assert solver.remove_noise(x, image, 1).dtype == solver.predict_data(x, image, 1).dtype == dtype
    assert solver.scale_model_input(x, 1).dtype == dtype
    for step in solver.inference_steps:
        x = solver(x, x, step)
        assert x.dtype == dtype


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - STOCHASTIC))  # noise of 16 bits is other noise
def test_sixteen_bits_are_rounded_once(name: str) -> None:
    x, prediction = latents().bfloat16(), latents(seed=1).bfloat16()
    narrow, exact = SOLVERS[name](4), SOLVERS[name](4)
    for step in narrow.inference_steps:
        result = narrow(x, prediction, step)
        assert torch.equal(result, exact(x.float(), prediction.float(), step).bfloat16())
        x = result


def test_a_solver_moves(make: Callable[..., Solver], dtype: torch.dtype, device: torch.device) -> None:
    solver = make(5)
    kind = solver.timesteps.dtype
    assert solver.device == torch.device("cpu") and solver.dtype == torch.float32
    assert solver.to(device=device, dtype=dtype) is solver
    tables = [value for value in vars(solver).values() if isinstance(value, Tensor)]
    assert {table.device.type for table in tables} == {device.type}
    for table in ("scale_factors", "cumulative_scale_factors", "noise_std", "signal_to_noise_ratios"):
        assert getattr(solver, table).dtype == dtype
    assert solver.dtype == dtype and solver.timesteps.dtype == kind
    solver.dtype = torch.float64
    solver.device = "cpu"
    assert solver.scale_factors.dtype == torch.float64 and solver.timesteps.device.type == "cpu"


def test_a_solver_moves_with_a_module_above(make: Callable[..., Solver]) -> None:
    class Model(fl.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solver = make(5)

    model = Model().to(dtype=torch.bfloat16)
    assert model.solver.dtype == torch.bfloat16 and model.solver.timesteps.dtype == make(5).timesteps.dtype


def test_timesteps_do_not_depend_on_the_dtype(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    assert torch.equal(make(30, dtype=dtype).timesteps, make(30).timesteps)


# Rebuilding, copying


OPTIONS = [
    (DPMSolver, {"last_step_first_order": True}),
    (LCMSolver, {"num_orig_steps": 100}),
    (UniPC, {"order": 3}),
    (DDPM, {}),
    (Heun, {"params": SolverParams(sigma_schedule=NoiseSchedule.KARRAS)}),
]


@pytest.mark.parametrize("cls,options", OPTIONS)
def test_rebuild_keeps_options(cls: type[Any], options: dict[str, Any]) -> None:
    solver = cls(8, first_inference_step=3, dtype=torch.float64, **options)
    steps_of(solver, latents().double())
    rebuilt = solver.rebuild(11)
    assert type(rebuilt) is cls and rebuilt is not solver
    assert (rebuilt.num_inference_steps, rebuilt.first_inference_step, rebuilt.dtype) == (11, 3, torch.float64)
    assert rebuilt.params == solver.params
    for option, value in options.items():
        if option != "params":
            assert getattr(rebuilt, option) == value
    assert solver.rebuild(None).num_inference_steps == 8
    assert solver.rebuild(None, 5).first_inference_step == 5
    assert solver.num_inference_steps == 8 and solver.first_inference_step == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
def test_a_copy_goes_on_from_where_it_was_made(make: Callable[..., Solver], copied: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    for step in (0, 1, 2):
        x = solver(x, torch.tanh(x), step, generator=generators(step)[0])
    twin, y = copied(solver), x
    for step in (3, 4):
        x = solver(x, torch.tanh(x), step, generator=generators(step)[0])
    for step in (3, 4):
        y = twin(y, torch.tanh(y), step, generator=generators(step)[0])
    assert torch.equal(x, y)


def test_runs_do_not_depend_on_those_before(make: Callable[..., Solver]) -> None:
    solver, x = make(5), latents()
    first = steps_of(solver, x, generators(1)[0])
    solver(latents(seed=3), latents(seed=4), 0)
    solver(latents(seed=3), latents(seed=4), 1)  # a run that was given up
    assert torch.equal(steps_of(solver, x, generators(1)[0]), first)


def test_a_solver_shows_its_arguments() -> None:
    shown = repr(DPMSolver(5, first_inference_step=1, last_step_first_order=True))
    assert shown.startswith("DPMSolver(")
    assert "first_inference_step=1" in shown and "last_step_first_order=True" in shown


# Other timesteps


def test_timesteps_can_be_assigned(name: str, make: Callable[..., Solver]) -> None:
    solver, trailing = make(5), TimestepSpacing.TRAILING
    if name == "DPMSolver-sde":
        expected = DPMSolver(5, params=SolverParams(timesteps_spacing=trailing, timesteps_offset=0, sde_variance=1.0))
    elif name in ("Heun", "LCMSolver"):
        expected = make(5)
    else:
        expected = make(5, params=SolverParams(timesteps_spacing=trailing, timesteps_offset=0))
    solver.timesteps = torch.tensor([900, 700, 500, 300, 100])
    assert solver.timesteps.tolist() == [900, 700, 500, 300, 100]
    solver.timesteps = expected.timesteps
    x = latents()
    assert torch.equal(steps_of(solver, x, generators(1)[0]), steps_of(expected, x, generators(1)[0]))


def test_assigned_timesteps_are_checked(make: Callable[..., Solver]) -> None:
    solver = make(3)
    before = solver.timesteps
    with pytest.raises(ValueError, match=r"timesteps must have the shape \(3,\), got \(2,\)"):
        solver.timesteps = torch.tensor([5, 3])
    with pytest.raises(ValueError, match="timesteps must descend"):
        solver.timesteps = torch.tensor([5, 3, 4])
    assert solver.timesteps is before


# The cost of a step


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


# Calls of torch in the first step and in the third one, in float32; then how many more 16 bits take.
COSTS = {
    "DDIM": (2, 2, 2),
    "DDPM": (4, 4, 2),
    "DPMSolver": (4, 5, 3),
    "DPMSolver-sde": (6, 7, 3),
    "Euler": (1, 1, 2),
    "EulerAncestral": (3, 3, 2),
    "Heun": (2, 2, 2),
    "LCMSolver": (4, 4, 2),
    "UniPC": (5, 9, 2),
}


@pytest.mark.parametrize("narrow", [False, True])
def test_a_step_is_a_few_calls_and_reads_nothing_back(name: str, make: Callable[..., Solver], narrow: bool) -> None:
    dtype = torch.bfloat16 if narrow else torch.float32
    solver, x = make(5, dtype=dtype), latents().to(dtype)
    counts: list[int] = []
    for step in range(3):
        with Calls() as calls:
            x = solver(x, x, step)
        assert not calls.counts.keys() & {"_local_scalar_dense", "item", "index", "select", "nonzero", "equal"}
        counts.append(calls.counts.total())
    first, third, more = COSTS[name]
    assert (counts[0], counts[2]) == (first + more * narrow, third + more * narrow)


@pytest.mark.cuda
def test_a_step_does_not_wait_for_the_device(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver = make(5, device="cuda", dtype=dtype)
    x, noise = (latents(seed=seed).to("cuda", dtype) for seed in (0, 1))
    generator = generators(1, 2, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        x = solver.initial_latents(noise, x)
        for step in solver.inference_steps:
            timestep = solver.timesteps[step]
            x = solver(x, solver.scale_model_input(x, step), step, generator=generator)
            assert timestep.device == x.device
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.isfinite().all()
    assert solver.add_noise(x, noise, [0, 3]).device == x.device


@pytest.mark.cuda
def test_generators_of_the_cpu_give_the_same_on_each_device(make: Callable[..., Solver]) -> None:
    x = latents()
    there = steps_of(make(5, device="cuda"), x.cuda(), generators(1, 2))
    assert_close(there.cpu(), steps_of(make(5), x, generators(1, 2)), rtol=1e-5, atol=1e-5)
