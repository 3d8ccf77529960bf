"""Weights from files straight into modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Size, Tensor, device as Device, nn

_SHOWN = 10


def load_safetensors_into(module: nn.Module, path: Path, strict: bool, device: Device | str | None) -> None:
    """Load a safetensors file into a module; raises `RuntimeError` as `Module.load_from_safetensors` says."""
    with cast(Any, safetensors).safe_open(path, framework="pt") as file:
        names: list[str] = list(file.keys())
        found = {name: Size(file.get_slice(name).get_shape()) for name in names}
        expected = module.state_dict(keep_vars=True)
        problems = describe_mismatch({name: tensor.shape for name, tensor in expected.items()}, found, strict)
        if problems:
            raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__} from {path}:\n{problems}")
        created: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}
        for name in found.keys() & expected.keys():
            target: Tensor = expected[name]
            tensor = cast(Tensor, file.get_tensor(name))
            if target.is_meta:
                dtype = target.dtype if target.is_floating_point() or target.is_complex() else tensor.dtype
                # A copy, because the file's pages may change or vanish under the model.
                created[name] = tensor.to(device=device or "cpu", dtype=dtype, copy=True)
            else:
                written[name] = tensor
        # Tensors of the file are views of its pages until they are copied: nothing is held twice.
        with torch.no_grad():
            module.load_state_dict(written, strict=False)
            module.load_state_dict(created, strict=False, assign=True)


def describe_mismatch(expected: Mapping[str, Size], found: Mapping[str, Size], strict: bool) -> str:
    """List names that are missing or unexpected (only if `strict`) and those whose shapes differ; empty if none."""
    lines: list[str] = []
    if strict:
        lines += _listing("missing", [name for name in expected if name not in found])
        lines += _listing("unexpected", [name for name in found if name not in expected])
    lines += _listing(
        "of another shape",
        [
            f"{name}: expected {tuple(shape)}, got {tuple(found[name])}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    )
    return "\n".join(lines)


def _listing(title: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    rest = [f"    ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"{len(names)} {title}:", *(f"    {name}" for name in names[:_SHOWN]), *rest]
