"""The base classes: how a module describes itself, where it is, and where its weights are."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import refiners.fluxion.layers as fl
from refiners.fluxion.utils import save_to_safetensors


class Color(Enum):
    RED = "red"


class Fields(fl.Module):
    """One attribute of every kind."""

    def __init__(self, number: int = 0, text: str = "a", ratio: float = 0.5, flag: bool = False, *dims: int) -> None:
        super().__init__()
        self.number = number
        self.text = text
        self.ratio = ratio
        self.flag = flag
        self.dims = dims
        self.items = [1, "two", 3.0]
        self.empty: list[int] = []
        self.size = torch.Size([2])
        self.nothing = None
        self.color = Color.RED
        self.tensor = torch.zeros(1)
        self.child = nn.Identity()
        self.function: Callable[[], None] = lambda: None
        self.table = {"a": 1}
        self.mixed = [1, None]
        self._private = 1


class Uninitialised(fl.Module):
    """A module that never calls the constructor of its base."""

    def __init__(self, spam: int = 0, foo: list[int] = [1, 2]) -> None:  # noqa: B006
        self.spam = spam
        self.foo = foo
        self.chunky = True


def test_a_module_is_a_module_of_torch_without_a_tag() -> None:
    assert issubclass(fl.Module, nn.Module)
    assert fl.Module._tag == ""
    assert fl.Module()._show_only_tag() is False


def test_modules_are_equal_only_to_themselves() -> None:
    first, second = fl.Linear(1, 1), fl.Linear(1, 1)
    second.load_state_dict(first.state_dict())
    for one, other in ((first, second), (fl.Chain(), fl.Chain()), (fl.ReLU(), fl.ReLU())):
        assert one == one and one != other and len({one, other}) == 2


def test_keyword_arguments_of_the_constructor_are_refused() -> None:
    with pytest.raises(TypeError):
        fl.Module(spam=1)  # pyright: ignore[reportCallIssue]


def test_str_shows_the_init_arguments_that_differ_from_their_default() -> None:
    assert str(Fields(3, "b", 0.5, True)) == "Fields(number=3, text=b, flag=True, dims=())"
    assert str(Fields(0, "a", 0.5, False, 4, 5)) == "Fields(dims=(4, 5))"
    assert str(fl.Slicing()) == "Slicing()"


def test_an_argument_without_default_is_always_shown() -> None:
    assert str(fl.Transpose(0, 1)) == "Transpose(dim0=0, dim1=1)"
    assert str(Fields()) == "Fields(dims=())"


def test_basic_attributes_are_public_plain_values_and_sequences_of_them() -> None:
    attributes = Fields(3).basic_attributes()
    assert attributes == {
        "training": True,
        "number": 3,
        "text": "a",
        "ratio": 0.5,
        "flag": False,
        "dims": (),
        "items": [1, "two", 3.0],
        "empty": [],
        "size": torch.Size([2]),
    }
    order = [key for key in attributes if key != "training"]
    assert order == ["number", "text", "ratio", "flag", "dims", "items", "empty", "size"]


def test_basic_attributes_can_be_restricted_to_init_arguments() -> None:
    assert Fields(3, ratio=0.25).basic_attributes(init_attrs_only=True) == {"number": 3, "ratio": 0.25, "dims": ()}


def test_a_module_describes_itself_before_its_base_is_initialised() -> None:
    module = Uninitialised(spam=3)
    assert str(module) == "Uninitialised(spam=3)"
    assert module.basic_attributes() == {"spam": 3, "foo": [1, 2], "chunky": True}
    assert module.basic_attributes(init_attrs_only=True) == {"spam": 3}


def test_print_shows_one_line_and_repr_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    chain = fl.Chain(fl.Identity())
    print(chain)
    assert capsys.readouterr().out == "Chain()\n"
    assert repr(chain) == "(CHAIN)\n    └── Identity()"


def test_repr_stops_at_depth_seven_and_pretty_print_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    chain = fl.Chain(fl.Identity())
    for _ in range(8):
        chain = fl.Chain(chain)
    assert len(repr(chain).splitlines()) == 8 and repr(chain).endswith("└── (CHAIN) ...")
    chain.pretty_print()
    assert len(capsys.readouterr().out.splitlines()) == 10
    chain.pretty_print(depth=2)
    assert capsys.readouterr().out == "(CHAIN)\n    └── (CHAIN)\n        └── (CHAIN) ...\n"


def test_loading_returns_the_module_with_the_tensors_of_the_file(tmp_path: Path) -> None:
    source, target = fl.Linear(2, 3), fl.Linear(2, 3)
    save_to_safetensors(tmp_path / "weights.safetensors", source.state_dict())
    assert target.load_from_safetensors(tmp_path / "weights.safetensors") is target
    assert torch.equal(source.weight, target.weight)
    assert fl.Linear(2, 3).load_from_safetensors(str(tmp_path / "weights.safetensors"))


def test_loading_is_strict_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weight = torch.ones(3, 2)
    save_to_safetensors(path, {"weight": weight, "other": torch.zeros(1)})
    linear = fl.Linear(2, 3)
    with pytest.raises(RuntimeError, match=r"(?s)bias.*other|other.*bias"):
        linear.load_from_safetensors(path)
    assert torch.equal(linear.load_from_safetensors(path, strict=False).weight, weight)


def test_to_takes_a_device_and_a_dtype_and_returns_the_module() -> None:
    linear = fl.Linear(2, 3)
    assert linear.to("cpu", torch.float64) is linear
    assert linear.weight.dtype == torch.float64
    assert linear.to(dtype=torch.float16).weight.dtype == torch.float16
    assert linear.to("meta").weight.is_meta
    assert linear.to(device=torch.device("meta")) is linear


def test_to_without_arguments_changes_nothing() -> None:
    linear = fl.Linear(2, 3)
    weight = linear.weight
    assert linear.to() is linear and linear.weight is weight


def test_to_takes_the_other_forms_of_torch() -> None:
    linear, like = fl.Linear(2, 3), torch.zeros(1, dtype=torch.float64)
    assert linear.to(torch.float16).weight.dtype == torch.float16
    assert linear.to(like).weight.dtype == torch.float64
    with pytest.raises(TypeError, match="two dtypes given"):
        linear.to(torch.float16, torch.float32)
    conv = fl.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_to_leaves_integers_alone() -> None:
    module = fl.Module()
    module.register_buffer("ids", torch.arange(3))
    module.register_buffer("values", torch.zeros(3))
    module.to(dtype=torch.float16)
    assert module.ids.dtype == torch.int64 and module.values.dtype == torch.float16


def test_named_modules_yields_names_and_modules_and_honours_keywords() -> None:
    chain = fl.Chain(fl.Linear(1, 1))
    assert [name for name, _ in chain.named_modules()] == ["", "Linear"]
    assert [name for name, _ in chain.named_modules(prefix="top")] == ["top", "top.Linear"]
    assert [name for name, _ in chain.named_parameters(prefix="top")] == ["top.Linear.weight", "top.Linear.bias"]


def test_a_path_leads_from_the_root_by_keys() -> None:
    chain = fl.Chain(fl.Sum(fl.Linear(1, 1), fl.Linear(1, 1)), fl.Sum())
    first_sum = chain.layer(0, fl.Sum)
    linear = first_sum.layer(1, fl.Linear)
    assert linear.get_path(parent=first_sum) == "Chain.Sum_1.Linear_2"
    assert linear.get_path(parent=first_sum, top=first_sum) == "Sum.Linear_2"
    assert first_sum.get_path() == "Chain.Sum_1"
    assert first_sum.get_path(parent=chain) == "Chain.Sum_1"
    assert first_sum.get_path(top=first_sum) == "Sum"
    assert linear.get_path() == "Linear"
    assert chain.get_path() == "Chain"


def test_the_path_from_a_chain_that_does_not_hold_the_module_is_an_error() -> None:
    with pytest.raises(ValueError, match="Linear"):
        fl.Linear(1, 1).get_path(parent=fl.Chain())


WEIGHTED: dict[str, Callable[[], Any]] = {
    "Linear": lambda: fl.Linear(2, 2),
    "Conv2d": lambda: fl.Conv2d(2, 2, 1),
    "ConvTranspose2d": lambda: fl.ConvTranspose2d(2, 2, 1),
    "Embedding": lambda: fl.Embedding(2, 2),
    "LayerNorm": lambda: fl.LayerNorm(2),
    "GroupNorm": lambda: fl.GroupNorm(2, 1),
    "LayerNorm2d": lambda: fl.LayerNorm2d(2),
    "Parameter": lambda: fl.Parameter(2),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_layers_answer_device_and_dtype_and_show_them(name: str) -> None:
    layer = WEIGHTED[name]().to(dtype=torch.float64)
    assert isinstance(layer, fl.WeightedModule)
    assert layer.device == layer.weight.device == torch.device("cpu")
    assert layer.dtype == layer.weight.dtype == torch.float64
    assert str(layer).endswith("device=cpu, dtype=float64)")


def test_a_weighted_layer_shows_its_arguments_first() -> None:
    assert str(fl.Linear(1, 2)) == "Linear(in_features=1, out_features=2, device=cpu, dtype=float32)"


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose2d", "Embedding", "LayerNorm", "GroupNorm"])
def test_layers_of_torch_are_both_and_ours_win(name: str) -> None:
    cls, torch_cls = getattr(fl, name), getattr(nn, name)
    assert issubclass(cls, torch_cls)
    for method in ("__str__", "__repr__", "to", "named_modules", "basic_attributes"):
        inherited = getattr(cls, method)
        assert inherited is getattr(fl.WeightedModule, method) or inherited.__module__.startswith("refiners"), method


def test_layers_without_weights_are_not_weighted() -> None:
    for layer in (fl.InstanceNorm2d(2), fl.MaxPool2d(2), fl.MaxPool1d(2), fl.ReflectionPad2d(1), fl.ReLU()):
        assert not isinstance(layer, fl.WeightedModule)


def test_plain_values_are_attributes_unless_the_name_is_taken() -> None:
    class Layer(fl.Module):
        def __init__(self) -> None:
            self.early = 1  # before there are parameters
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("table", torch.ones(2))
            self.inner = fl.Identity()
            self.size = 3

        @property
        def double(self) -> int:
            return 2 * self.size

        @double.setter
        def double(self, value: int) -> None:
            self.size = value // 2

    layer = Layer()
    layer.double = 10
    assert (layer.early, layer.size, layer.double) == (1, 5, 10) and "double" not in vars(layer)
    for name in ("weight", "table", "inner"):
        with pytest.raises(TypeError, match=name):
            setattr(layer, name, 1)
    setattr(layer, "weight", None)  # noqa: B010 (its declared type is another one)
    assert layer.weight is None and list(layer.state_dict()) == ["table"]


class _Base:
    """What the two modules below share: nothing of the class may hide a parameter."""

    read_only = property(lambda self: 1)
    shared = 1


class _Theirs(_Base, nn.Module):
    pass


class _Ours(_Base, fl.Module):
    pass


def _registered(cls: type[nn.Module], name: str, value: object) -> object:
    """Assign a value to a module that has one of each, and tell what there is then, or the error."""
    module: Any = cls()
    module.parameter, module.none = nn.Parameter(torch.zeros(1)), None
    module.register_parameter("empty", None)
    module.register_buffer("buffer", torch.zeros(1), persistent=False)
    module.child, module.plain = nn.Identity(), 1
    try:
        setattr(module, name, value)
    except Exception as error:
        return type(error), str(error)
    plain = {key for key in vars(module) if not key.startswith("_")}
    tables = (module._parameters, module._buffers, module._modules)
    return plain, [list(table) for table in tables], getattr(module, name) is value, module._non_persistent_buffers_set


@pytest.mark.parametrize("kind", ["parameter", "not a leaf", "subclass", "tensor", "int", "none"])
@pytest.mark.parametrize(
    "name", ["new", "parameter", "empty", "buffer", "child", "plain", "none", "a.b", "read_only", "shared", "forward"]
)
def test_assignment_registers_as_torch_does(kind: str, name: str) -> None:
    class Special(nn.Parameter): ...

    leaf = nn.Parameter(torch.zeros(1))
    product = leaf * 2
    product.__class__ = nn.Parameter
    value = {
        "parameter": leaf,
        "not a leaf": product,
        "subclass": Special(torch.zeros(1)),
        "tensor": torch.zeros(1),
        "int": 3,
        "none": None,
    }[kind]
    ours, theirs = _registered(_Ours, name, value), _registered(_Theirs, name, value)
    assert str(ours).replace("_Ours", "_Theirs") == str(theirs)


def test_hooks_of_registration_see_every_parameter() -> None:
    seen: list[str] = []

    def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        seen.append(name)

    handle = nn.modules.module.register_module_parameter_registration_hook(note)
    try:
        fl.LayerNorm(2)
    finally:
        handle.remove()
    fl.LayerNorm(2)
    assert seen == ["weight", "bias"]


def test_a_parameter_before_the_constructor_is_an_error() -> None:
    class Early(fl.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(torch.zeros(1))
            super().__init__()

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Early()
