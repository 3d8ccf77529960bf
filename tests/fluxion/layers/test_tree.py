"""The drawing of a tree: values, folding, numbering, connectors, depth."""

import pytest
import torch
from torch import nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.module import ModuleTree, TreeNode


def linear(out_features: int = 8) -> fl.Linear:
    return fl.Linear(8, out_features)


LINEAR = "Linear(in_features=8, out_features=8, device=cpu, dtype=float32)"


def test_the_example() -> None:
    chain = fl.Chain(linear(), linear(), fl.Chain(linear(4), fl.Linear(4, 1)))
    assert repr(chain) == (
        "(CHAIN)\n"
        "    ├── Linear(in_features=8, out_features=8, device=cpu, dtype=float32) (x2)\n"
        "    └── (CHAIN)\n"
        "        ├── Linear(in_features=8, out_features=4, device=cpu, dtype=float32) #1\n"
        "        └── Linear(in_features=4, out_features=1, device=cpu, dtype=float32) #2"
    )


def test_nodes_hold_value_class_name_and_children() -> None:
    tree = ModuleTree(fl.Chain(fl.Identity(), fl.Sum(fl.Identity())))
    identity: TreeNode = {"value": "Identity()", "class_name": "Identity", "children": []}
    assert tree.root == {
        "value": "(CHAIN)",
        "class_name": "Chain",
        "children": [identity, {"value": "(SUM)", "class_name": "Sum", "children": [identity]}],
    }
    assert list(tree) == tree.root["children"]
    assert str(tree) == "ModuleTree(root=(CHAIN))"


def test_the_repr_of_a_tree_is_the_drawing() -> None:
    chain = fl.Chain(fl.Identity())
    assert repr(ModuleTree(chain)) == repr(chain)


def test_tags() -> None:
    tags = {
        fl.Chain: "CHAIN",
        fl.Parallel: "PAR",
        fl.Distribute: "DISTR",
        fl.Passthrough: "PASS",
        fl.Sum: "SUM",
        fl.Residual: "RES",
        fl.Concatenate: "CAT",
        fl.Matmul: "MATMUL",
    }
    assert {cls: cls._tag for cls in tags} == tags


@pytest.mark.parametrize("cls", [fl.Chain, fl.Parallel, fl.Distribute, fl.Passthrough, fl.Sum, fl.Concatenate])
def test_these_chains_show_only_their_tag_and_their_subclasses_both(cls: type[fl.Chain]) -> None:
    assert cls()._show_only_tag() is True
    assert repr(cls()) == f"({cls._tag})"
    subclass = type("Special", (cls,), {})
    assert subclass()._show_only_tag() is False
    assert repr(subclass()) == f"({cls._tag}) Special()"


def test_residual_and_matmul_show_tag_and_name() -> None:
    assert repr(fl.Residual()) == "(RES) Residual()"
    assert repr(fl.Matmul(fl.Identity(), fl.Identity())).startswith("(MATMUL) Matmul()\n")


def test_a_bare_tag_hides_attributes() -> None:
    assert repr(fl.Concatenate(fl.Identity(), dim=1)).startswith("(CAT)\n")


def test_subclasses_show_their_attributes() -> None:
    class Net(fl.Chain):
        def __init__(self, channels: int) -> None:
            self.channels = channels
            super().__init__()

    assert repr(Net(4)) == "(CHAIN) Net(channels=4)"


def test_a_module_that_appears_twice_is_drawn_once() -> None:
    identity = fl.Identity()
    assert repr(fl.Chain(identity, fl.ReLU(), identity)) == "(CHAIN)\n    ├── Identity()\n    └── ReLU()"


def test_foreign_children_are_leaves_with_their_own_str() -> None:
    chain = fl.Chain(nn.Sequential(nn.ReLU(), nn.ReLU()), fl.Identity())
    assert ModuleTree(chain).root["children"][0] == {
        "value": str(nn.Sequential(nn.ReLU(), nn.ReLU())),
        "class_name": "Sequential",
        "children": [],
    }
    assert "├── Sequential(\n" in repr(chain)


def test_registered_children_of_other_modules_are_drawn() -> None:
    assert repr(fl.GLU(fl.SiLU())) == "GLU(activation=SiLU())"
    assert repr(fl.Chain(fl.GLU(fl.SiLU()))) == "(CHAIN)\n    └── GLU()\n        └── SiLU()"


def test_nodes_use_str_and_not_repr() -> None:
    chain = fl.Chain(fl.UseContext("a", "b"), fl.SetContext("a", "b"), fl.Converter())
    assert repr(chain) == (
        "(CHAIN)\n    ├── UseContext(context=a, key=b)\n    ├── SetContext(context=a, key=b)\n    └── Converter()"
    )


def test_runs_of_equal_neighbours_are_folded_on_every_level() -> None:
    chain = fl.Chain(fl.Sum(linear(), linear()), fl.Sum(linear(), linear()), fl.Sum(linear()))
    assert repr(chain) == (
        f"(CHAIN)\n    ├── (SUM) (x2) #1\n    │   └── {LINEAR} (x2)\n    └── (SUM) #2\n        └── {LINEAR}"
    )


def test_equal_modules_apart_are_not_folded_but_numbered() -> None:
    chain = fl.Chain(fl.Identity(), fl.ReLU(), fl.Identity())
    assert repr(chain) == "(CHAIN)\n    ├── Identity() #1\n    ├── ReLU()\n    └── Identity() #2"


def test_a_folded_run_counts_once_in_the_numbering() -> None:
    chain = fl.Chain(linear(), linear(), fl.ReLU(), linear(4), fl.ReLU())
    values = [node["value"] for node in ModuleTree(chain)]
    assert values == [
        f"{LINEAR} (x2) #1",
        "ReLU() #1",
        "Linear(in_features=8, out_features=4, device=cpu, dtype=float32) #2",
        "ReLU() #2",
    ]


def test_the_depth_limit() -> None:
    chain = fl.Chain(fl.Chain(fl.Identity()), fl.ReLU())
    tree = ModuleTree(chain)
    chain_line = "    ├── (CHAIN)"
    assert tree.__repr__().splitlines()[1] == chain_line
    drawn = _pretty(chain, 1)
    assert drawn == "(CHAIN)\n    ├── (CHAIN) ...\n    └── ReLU()"


def test_the_depth_limit_zero_draws_the_root_with_a_connector() -> None:
    class Foo(fl.Chain):
        pass

    assert _pretty(Foo(fl.Identity()), 0) == "└── (CHAIN) Foo() ..."


def test_shortening_keeps_the_lines_around_one() -> None:
    lines = [str(number) for number in range(100)]
    text = "\n".join(lines)
    assert ModuleTree.shorten_tree_repr(text).split("\n") == lines[:11]
    assert ModuleTree.shorten_tree_repr(text, line_index=50).split("\n") == lines[40:61]
    assert ModuleTree.shorten_tree_repr(text, line_index=50, max_lines=4).split("\n") == lines[48:53]
    assert ModuleTree.shorten_tree_repr(text, line_index=99, max_lines=4).split("\n") == lines[97:]


def test_drawing_works_on_meta_tensors() -> None:
    assert "device=meta" in repr(fl.Chain(fl.Linear(1, 1, device=torch.device("meta"))))


def _pretty(module: fl.Module, depth: int) -> str:
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as output:
        module.pretty_print(depth)
    return output.getvalue().removesuffix("\n")
