import shutil

import pytest
import torch
from torch._dynamo import lookup_backend
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.testing import assert_close

from refiners.ops import lora_linear

ALL = ("x", "weight", "bias", "downs", "ups", "scale")


def with_gradients(inputs, names=ALL):
    """Fresh leaves, of which those with these names require a gradient."""
    fresh = inputs.map(lambda t: t.detach().clone())
    for name in names:
        value = getattr(fresh, name)
        for tensor in value if isinstance(value, list) else [value]:
            if tensor is not None:
                tensor.requires_grad_()
    return fresh


def as_function(inputs):
    """The operator as a function of single tensors, for gradcheck."""
    count = len(inputs.downs)

    def f(x, weight, bias, scale, *matrices):
        return lora_linear(x, weight, bias, matrices[:count], matrices[count:], scale)

    return f, (inputs.x, inputs.weight, inputs.bias, inputs.scale, *inputs.downs, *inputs.ups)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [0, 1, 2])
def test_gradients_of_all_arguments_are_right(lead, bias, make_inputs):
    inputs = make_inputs((2, 3), 4, 5, (2, 1), lead=lead, bias=bias, dtype=torch.float64)
    inputs = with_gradients(inputs._replace(scale=inputs.scale.double()))
    f, arguments = as_function(inputs)
    assert gradcheck(f, arguments)
    assert gradgradcheck(f, arguments)


@pytest.mark.parametrize("batch", [(), (0,), (3,)], ids=str)
def test_gradients_at_the_edges_are_right(batch, make_inputs):
    inputs = with_gradients(make_inputs(batch, 4, 5, (2, 0), dtype=torch.float64))
    lora_linear(*inputs).sum().backward()
    assert inputs.weight.grad is not None
    assert inputs.weight.grad.shape == (5, 4)
    assert inputs.scale.grad is not None
    assert inputs.scale.grad.shape == (2,)
    assert inputs.downs[1].grad is not None
    assert inputs.downs[1].grad.shape == (0, 4)


def test_without_updates_the_scale_has_an_empty_gradient(make_inputs):
    inputs = with_gradients(make_inputs((3,), 4, 5, ()))
    lora_linear(*inputs).sum().backward()
    assert inputs.scale.grad is not None
    assert inputs.scale.grad.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_the_kernels_match_those_of_the_formula(dtype, isa, make_inputs, reference):
    inputs = make_inputs((3, 50), 64, 48, (4, 9), lead=1, dtype=dtype)
    inputs, plain = with_gradients(inputs), with_gradients(inputs.map(lambda t: t.double()))
    grad = torch.randn(3, 50, 48).to(dtype)
    lora_linear(*inputs).backward(grad)
    reference(*plain).backward(grad.double())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for name in ALL:
        ours, theirs = getattr(inputs, name), getattr(plain, name)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
        for a, b in pairs:
            assert a.grad.dtype == a.dtype
            assert (a.grad.double() - b.grad).norm() <= tolerance * b.grad.norm(), name


@pytest.mark.parametrize("names", [("downs", "ups"), ("x",), ("ups",), ("scale",)], ids=str)
def test_only_what_requires_a_gradient_gets_one(names, make_inputs):
    inputs = with_gradients(make_inputs((3, 5), 8, 6, (2,)), names)
    lora_linear(*inputs).sum().backward()
    for name in ALL:
        value = getattr(inputs, name)
        for tensor in value if isinstance(value, list) else [value]:
            assert (tensor.grad is not None) == (name in names)


def test_only_inputs_are_saved(make_inputs):
    inputs = with_gradients(make_inputs((3, 5), 8, 6, (2,)), ("downs", "ups"))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        lora_linear(*inputs)
    given = {t.data_ptr() for t in (inputs.x, inputs.weight, inputs.scale, *inputs.downs, *inputs.ups)}
    assert set(saved) == given


@pytest.mark.parametrize(
    ("dtype", "requires_grad"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)], ids=str
)
def test_opcheck(dtype, requires_grad, isa, device, make_inputs):
    inputs = make_inputs((3, 5), 8, 6, (2, 3), lead=1, dtype=dtype, device=device)
    opcheck(torch.ops.refiners.lora_linear.default, tuple(with_gradients(inputs, ALL if requires_grad else ())))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own imports
def test_one_compiled_graph_serves_several_shapes(make_inputs):
    torch.compiler.reset()
    backend = lookup_backend("inductor" if shutil.which("c++") else "aot_eager")
    graphs = []
    base = make_inputs((2, 5), 8, 6, (2, 3))

    def f(x, downs, ups, scale):
        return lora_linear(x.sin(), base.weight, base.bias, downs, ups, scale).relu()

    def count(graph, example_inputs):
        graphs.append(graph)
        return backend(graph, example_inputs)

    compiled = torch.compile(f, backend=count, fullgraph=True, dynamic=True)
    for batch in ((11, 13), (17, 19), (23, 29)):
        inputs = with_gradients(make_inputs(batch, 8, 6, (2, 3)), ("x", "downs", "ups", "scale"))
        plain = with_gradients(inputs, ("x", "downs", "ups", "scale"))
        y, expected = (g(i.x, i.downs, i.ups, i.scale) for g, i in ((compiled, inputs), (f, plain)))
        assert_close(y, expected)
        y.sum().backward()
        expected.sum().backward()
        assert_close(inputs.x.grad, plain.x.grad)
        assert_close(inputs.ups[1].grad, plain.ups[1].grad)
    assert len(graphs) == 1
