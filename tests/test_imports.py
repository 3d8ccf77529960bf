"""Who may import whom, in Python and in C++, checked on the sources; and the checks, checked on small made-up trees."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each imports only itself and those before it; the longest name that fits a module is its layer.
ORDER = [
    "refiners._version",
    "refiners.__version__",  # the same, by the name that the package gives it
    "refiners.options",
    "refiners.ops",
    "refiners.fluxion.utils",
    "refiners.fluxion",  # its __init__ re-exports the utilities
    "refiners.fluxion.context",
    "refiners.fluxion.layers",
    "refiners.fluxion.adapters",
    "refiners.foundationals",
    "refiners.conversion",
    "refiners.training_utils",
    "refiners.solutions",
    "refiners.demo",
    "refiners.generate",
    "refiners.inspect",
    "refiners.lora",
    "refiners.doctor",
    "refiners.bench",
    "refiners.cli",
    "refiners.__main__",
    "refiners",
]
CORE = {*sys.stdlib_module_names, "refiners", "torch", "safetensors", "PIL", "jaxtyping", "packaging", "numpy"}
CORE |= {"typing_extensions"}  # torch depends on it
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "scripts"}
FAMILY_EXCEPTIONS = {("latent_diffusion", "clip")}
LATE = {
    ("refiners.fluxion.layers", "refiners.fluxion.adapters.adapter.Adapter"),  # `fl.Adapter`, when it is asked for
    ("refiners.foundationals.latent_diffusion.model", "refiners.conversion.pretrained.load_pretrained"),
    ("refiners.foundationals.latent_diffusion.lora", "refiners.conversion.lora.attach_lora"),
    ("refiners.foundationals.latent_diffusion.lora", "refiners.conversion.lora.replace_lora"),
    ("refiners.foundationals.latent_diffusion.lora", "refiners.conversion.lora.LoraPlan"),  # types, as the next
    ("refiners.foundationals.latent_diffusion.lora", "refiners.conversion.lora.Part"),
    ("refiners.foundationals.latent_diffusion.lora", "refiners.conversion.lora.Scope"),
    ("refiners.foundationals.latent_diffusion.lora_weights", "refiners.conversion.lora.save_lora"),
    ("refiners.foundationals.latent_diffusion.lora_weights", "refiners.conversion.lora.LoraFormat"),
    ("refiners.foundationals.latent_diffusion.stable_diffusion_xl.lcm_lora", "refiners.conversion.lora.inspect_lora"),
}


def layer_of(module: str) -> int | None:
    """Give the place of a module in ORDER, None if it has none."""
    fits = [name for name in ORDER if module == name or (module.startswith(name + ".") and name != "refiners")]
    return ORDER.index(max(fits, key=len)) if fits else None


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each imported name with its statement; `from package import name` gives `package.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node, f"{origin}.{alias.name}") for alias in node.names)


def runs_at_import(tree: ast.Module) -> set[ast.stmt]:
    """Collect the import statements that run when the module is imported: none in a function, none for types alone."""
    found: set[ast.stmt] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.add(node)
        pending.extend(ast.iter_child_nodes(node))
    return found


def only_imports(tree: ast.Module) -> bool:
    """Say whether a module holds a docstring, imports (`__getattr__` is a late one) and `__all__`, and nothing else."""

    def is_fine(node: ast.stmt) -> bool:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                return True
            case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AnnAssign(target=ast.Name(id="__all__")):
                return True
            case ast.FunctionDef(name="__getattr__"):
                return True
            case ast.If(test=test, body=body, orelse=[]) if ast.unparse(test).endswith("TYPE_CHECKING"):
                return all(map(is_fine, body))
            case _:
                return False

    return all(map(is_fine, tree.body))


def check_family(module: str, imported: str) -> str | None:
    """Say what is wrong if a model family imports another one."""
    mine, theirs = (re.match(r"refiners\.foundationals\.(\w+)", name) for name in (module, imported))
    if mine is None or theirs is None or mine[1] == theirs[1] or (mine[1], theirs[1]) in FAMILY_EXCEPTIONS:
        return None
    return f"{module} imports {imported}: a family imports no other"


def check_python(package: Path) -> list[str]:
    """Check every module below `package`, the folder that holds `refiners`; return one line per broken rule."""
    problems: list[str] = []
    for path in sorted((package / "refiners").rglob("*.py")):
        is_package = path.name == "__init__.py"
        source = path.read_text()
        tree = ast.parse(source)
        module = ".".join((path.parent if is_package else path.with_suffix("")).relative_to(package).parts)
        layer = layer_of(module)
        if layer is None:
            problems.append(f"{module} has no place in the import order")
            continue
        if is_package and not only_imports(tree):
            problems.append(f"{module}.__init__ holds more than imports")
        if re.search(r"#\s*type:\s*ignore(?!\[)|#\s*pyright:\s*ignore(?!\[)", source):
            problems.append(f"{module} ignores a type error without naming its rule")
        at_import = runs_at_import(tree)
        for statement, name in imports_of(tree, module, is_package):
            top = name.split(".")[0]
            if top in OUTSIDE:
                problems.append(f"{module} imports {name}, which is not part of the package")
            elif top not in CORE and statement in at_import:
                problems.append(f"{module} imports {name} outside a function: it is optional")
            elif top == "refiners":
                theirs = layer_of(name)
                late = (module, name) in LATE and statement not in at_import
                if (theirs is None or theirs > layer) and not late:
                    problems.append(f"{module} imports {name}, which comes later")
                problems.extend(filter(None, [check_family(module, name)]))
    return problems


def reach(path: Path, csrc: Path, seen: set[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the includes of a file and of everything of ours that it includes, as (file of ours or of others, name)."""
    for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
        candidates = [path.parent / name, csrc / name, csrc / "common" / name]
        ours = next((candidate.resolve() for candidate in candidates if candidate.is_file()), Path(name))
        yield ours, name
        if ours.is_absolute() and ours not in seen:
            seen.add(ours)
            yield from reach(ours, csrc, seen)


def check_cpp(csrc: Path) -> list[str]:
    """Check every C++ and CUDA file below `csrc`; return one line per broken rule."""
    problems: list[str] = []
    csrc = csrc.resolve()
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"}):
        here = path.relative_to(csrc)
        binds = re.search(r"_(cpu|cuda)\.cpp$", path.name) is not None
        bare = path.suffix in {".cu", ".cuh"} or path.name.endswith("_kernel.h")
        for file, name in reach(path, csrc, set()):
            is_torch = re.match(r"(torch|ATen|c10)/", name) is not None
            is_stable = re.match(r"torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch)/", name) is not None
            if is_torch and not is_stable:
                problems.append(f"{here} includes {name}, which is not in torch's stable ABI")
            if is_torch and (bare or (path.suffix == ".cpp" and not binds)):
                problems.append(f"{here} includes {name}: torch is for *_cpu.cpp and *_cuda.cpp")
            if name.startswith("pybind11/") and here.as_posix() != "host.cpp":
                problems.append(f"{here} includes {name}: pybind11 is for host.cpp")
            if file.is_relative_to(csrc) and (problem := check_direction(here, file.relative_to(csrc))):
                problems.append(problem)
    return problems


def check_direction(source: Path, included: Path) -> str | None:
    """Say what is wrong if an include between two folders of csrc does not point down."""
    mine, theirs = (p.parts[: 2 if p.parts[0] == "ops" else 1] for p in (source, included))
    allowed = {"ops": {mine, ("common",)}, "common": {mine}, "bench": {mine}}
    if source.parent == Path() or theirs in allowed.get(source.parts[0], set()):
        return None
    return f"{source} includes {included}: arrows point down"


def test_python_imports_point_down() -> None:
    assert check_python(ROOT / "python") == []


def test_cpp_includes_point_down() -> None:
    assert check_cpp(ROOT / "csrc") == []


# One module of a made-up package, its source, and what is wrong with it.
PYTHON_MISTAKES = [
    ("ops/a.py", "import refiners.fluxion.utils", "comes later"),
    ("fluxion/utils.py", "from refiners.fluxion import layers", "comes later"),
    ("fluxion/layers/a.py", "from ..adapters import Adapter", "comes later"),
    ("fluxion/layers/__init__.py", "from refiners.fluxion.adapters.adapter import Adapter", "comes later"),
    ("fluxion/layers/a.py", "def f():\n    from refiners.fluxion.adapters import Adapter", "comes later"),
    ("conversion/a.py", "from refiners.solutions import x", "comes later"),
    ("conversion/a.py", "import refiners", "comes later"),
    ("strange.py", "", "no place in the import order"),
    ("foundationals/swin/a.py", "from refiners.foundationals.clip import x", "a family imports no other"),
    ("foundationals/clip/a.py", "import refiners.foundationals.latent_diffusion", "a family imports no other"),
    ("demo/a.py", "import sklearn", "outside a function"),
    ("demo/a.py", "if True:\n    from rich import print", "outside a function"),
    ("demo/a.py", "from tests import conftest", "not part of the package"),
    ("ops/__init__.py", "x = 1", "more than imports"),
    ("ops/__init__.py", "import torch\ndef f(): ...", "more than imports"),
    ("ops/a.py", "x: int = ''  # type: ignore", "without naming its rule"),
    ("ops/a.py", "x: int = ''  # pyright: ignore", "without naming its rule"),
]
PYTHON_FINE = [
    ("ops/a.py", "import torch\nfrom . import b\nfrom refiners import _version"),
    ("ops/__init__.py", '"""Doc."""\nfrom refiners.ops.a import a\n__all__ = ["a"]'),
    ("fluxion/layers/a.py", "from refiners.ops import a\nfrom ..utils import norm\nfrom ..context import Context"),
    ("fluxion/layers/__init__.py", "def __getattr__(n):\n    from refiners.fluxion.adapters.adapter import Adapter"),
    ("foundationals/latent_diffusion/a.py", "from refiners.foundationals.clip import x"),
    ("demo/a.py", "def f():\n    import sklearn\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich"),
    ("cli.py", "from refiners import __version__\nfrom refiners.demo import main"),
    ("cli.py", "x: int = ''  # type: ignore[assignment]"),
]
CPP_MISTAKES = [
    ("ops/a/a_kernel.cu", "#include <torch/csrc/stable/tensor.h>", "torch is for"),
    ("ops/a/a_kernel.h", "#include <c10/util/Half.h>", "not in torch's stable ABI"),
    ("ops/a/a_avx2.cpp", "#include <torch/headeronly/util/Half.h>", "torch is for"),
    ("ops/a/a_cpu.cpp", "#include <torch/library.h>", "not in torch's stable ABI"),
    ("ops/a/a_avx2.cpp", '#include "stable_abi.h"', "torch is for"),
    ("ops/a/a_cpu.cpp", "#include <pybind11/pybind11.h>", "pybind11 is for"),
    ("ops/a/a_cpu.cpp", '#include "ops/b/b.h"', "arrows point down"),
    ("ops/a/a_cpu.cpp", '#include "../b/b.h"', "arrows point down"),
    ("common/a.h", '#include "ops/b/b.h"', "arrows point down"),
    ("bench/a.h", '#include "common/check.h"', "arrows point down"),
]
CPP_FINE = [
    ("ops/a/a_cpu.cpp", '#include <torch/csrc/stable/tensor.h>\n#include "common/check.h"\n#include "stable_abi.h"'),
    ("ops/b/b_kernel.cu", '#include <cuda_runtime.h>\n#include "b.h"'),
    ("host.cpp", '#include <pybind11/pybind11.h>\n#include "ops/b/b.h"'),
]


def write(root: Path, name: str, source: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(source)
    return root


def write_cpp(root: Path, name: str, source: str) -> Path:
    write(root, "common/check.h", "")
    write(root, "common/stable_abi.h", "#include <torch/csrc/stable/tensor.h>")
    write(root, "ops/b/b.h", "")
    return write(root, name, source)


@pytest.mark.parametrize(("name", "source", "expected"), PYTHON_MISTAKES)
def test_a_mistake_in_python_is_found(tmp_path: Path, name: str, source: str, expected: str) -> None:
    write(tmp_path / "refiners", name, source)
    (problem,) = check_python(tmp_path)
    assert expected in problem


@pytest.mark.parametrize(("name", "source"), PYTHON_FINE)
def test_correct_python_passes(tmp_path: Path, name: str, source: str) -> None:
    write(tmp_path / "refiners", name, source)
    assert check_python(tmp_path) == []


@pytest.mark.parametrize(("name", "source", "expected"), CPP_MISTAKES)
def test_a_mistake_in_cpp_is_found(tmp_path: Path, name: str, source: str, expected: str) -> None:
    problems = check_cpp(write_cpp(tmp_path, name, source))
    assert any(expected in problem for problem in problems)


@pytest.mark.parametrize(("name", "source"), CPP_FINE)
def test_correct_cpp_passes(tmp_path: Path, name: str, source: str) -> None:
    assert check_cpp(write_cpp(tmp_path, name, source)) == []
