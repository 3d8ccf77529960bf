"""Files of `torch.save`, and folders of PEFT, that are damaged or odd."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# --- files of torch.save ----------------------------------------------------------------------------------------------

Tensors = dict[str, Tensor]


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _bytes_changed(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    way = rng.randrange(5)
    begin = rng.randrange(len(content))
    end = min(len(content), begin + rng.randrange(1, 200))
    if way == 0:
        return content[:begin]
    if way == 1:
        for _ in range(rng.choice((1, 3, 30))):
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif way == 2:
        del changed[begin:end]
    elif way == 3:
        changed[begin:begin] = rng.randbytes(end - begin)
    else:
        changed[begin:end] = bytes(end - begin)
    return bytes(changed)


def _pickle_changed(content: bytes, rng: random.Random) -> bytes:
    """Change bytes of the pickle alone, and write the archive anew, so that nothing else is wrong."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(written, "w") as target:
        for each in source.infolist():
            data = bytearray(source.read(each))
            if each.filename.endswith("data.pkl"):
                for _ in range(rng.choice((1, 2, 5))):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            target.writestr(zipfile.ZipInfo(each.filename), bytes(data))
    return written.getvalue()


def _compressed(content: bytes) -> bytes:
    written = io.BytesIO()
    source, target = zipfile.ZipFile(io.BytesIO(content)), zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED)
    with source, target:
        for each in source.infolist():
            target.writestr(each.filename, source.read(each))
    return written.getvalue()


def _one_changed(change: Callable[[Tensor], Any]) -> Callable[[Tensors, random.Random], bytes]:
    def make(tensors: Tensors, rng: random.Random) -> bytes:
        key = rng.choice([key for key in tensors if tensors[key].ndim > 1] or list(tensors))
        return saved({**tensors, key: change(tensors[key])})

    return make


def _alpha(value: Any) -> Callable[[Tensors, random.Random], bytes]:
    def make(tensors: Tensors, rng: random.Random) -> bytes:
        first = next(iter(tensors)).partition(".")[0]
        return saved({**tensors, f"{first}.alpha": value})

    return make


def _cyclic(tensors: Tensors, rng: random.Random) -> bytes:
    content: dict[str, Any] = dict(tensors)
    content["again"] = content
    return saved(content)


PICKLES: dict[str, Callable[[Tensors, random.Random], bytes]] = {
    "as it is": lambda tensors, rng: saved(tensors),
    "bytes": lambda tensors, rng: _bytes_changed(saved(tensors), rng),
    "bytes of the pickle": lambda tensors, rng: _pickle_changed(saved(tensors), rng),
    "bytes of an old file": lambda tensors, rng: _bytes_changed(
        saved(tensors, _use_new_zipfile_serialization=False), rng
    ),
    "old": lambda tensors, rng: saved(tensors, _use_new_zipfile_serialization=False),
    "compressed": lambda tensors, rng: _compressed(saved(tensors)),
    "nested": lambda tensors, rng: saved({"state_dict": tensors, "epoch": 3}),
    "a list": lambda tensors, rng: saved(list(tensors.values())),
    "a tensor": lambda tensors, rng: saved(torch.ones(3)),
    "a number": lambda tensors, rng: saved(3),
    "cyclic": _cyclic,
    "numbers as keys": lambda tensors, rng: saved(dict(enumerate(tensors.values()))),
    "odd keys": lambda tensors, rng: saved({**tensors, "\x1b[2J\0\ud800": torch.ones(1), None: torch.ones(1)}),
    "other values": lambda tensors, rng: saved({**tensors, "step": 3, "name": "x", "none": None}),
    "one number for many": _one_changed(lambda tensor: torch.ones(1).expand(2**20, 2**20)),
    "one number for all": _one_changed(lambda tensor: torch.ones(1).expand(tensor.shape)),
    "not contiguous": _one_changed(lambda tensor: tensor.clone().mT.contiguous().mT if tensor.ndim == 2 else tensor),
    "a part of a larger one": _one_changed(lambda tensor: torch.cat([tensor, tensor])[: len(tensor)]),
    "sparse": _one_changed(lambda tensor: tensor.to_sparse()),
    "complex": _one_changed(lambda tensor: tensor.to(torch.complex64)),
    "integers": _one_changed(lambda tensor: tensor.to(torch.int32)),
    "a parameter": _one_changed(torch.nn.Parameter),
    "float8": _one_changed(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "NaN": _one_changed(lambda tensor: tensor * torch.nan),
    "without a value": _one_changed(lambda tensor: tensor.to("meta")),
    "complex alpha": _alpha(torch.tensor(1j)),
    "alpha without a value": _alpha(torch.empty((), device="meta")),
    "alpha as a number": _alpha(2.0),
}


# --- folders of PEFT --------------------------------------------------------------------------------------------------

_GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["to_q"]}


def _config(**changes: Any) -> bytes:
    return json.dumps({**_GOOD, **changes}).encode()


CONFIGS: dict[str, bytes | None] = {
    "good": _config(),
    "none": None,
    "empty": b"",
    "no JSON": b"{r: 2}",
    "no UTF-8": b'{"r": "\xff"}',
    "UTF-16": '{"r": 2}'.encode("utf-16"),
    "a mark first": b"\xef\xbb\xbf" + _config(),
    "a list": b"[1, 2]",
    "null": b"null",
    "a number": b"5",
    "deep": b"[" * 100_000,
    "a deep value": b'{"r": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an object alone": b"{}",
    "a key twice": b'{"r": 2, "r": 4, "lora_alpha": 4}',
    "unknown": _config(peft_type="UNKNOWN", more={"a": [1, None]}),
    **{f"rank {value!r}": _config(r=value) for value in (0, -2, 2.5, "2", True, None, [2], {}, 10**400, 2**40)},
    **{f"alpha {value!r}": _config(lora_alpha=value) for value in (0, -4, "4", True, None, [4], {}, 10**400)},
    **{f"alpha {value}": _config().replace(b"4,", f"{value},".encode()) for value in ("NaN", "-Infinity", "1e999")},
    **{f"rs-LoRA {value!r}": _config(use_rslora=value) for value in (True, "yes", 1, None, [])},
    **{
        f"patterns {number}": _config(alpha_pattern=value)
        for number, value in enumerate(
            (
                {"to_q": 8},
                {"to_q": "8"},
                {"to_q": None},
                {"to_q": {}},
                {"(": 8},
                {"*": 8},
                {"(a+)+$": 8},
                {"(a|b|ab)*c": 8},
                {".*.*.*.*.*x": 8},
                {"a?" * 30 + "a" * 30: 8},
                {"(a|a)" * 100: 8},
                {"(?P<x>": 8},
                {"(" * 500 + ")" * 500: 8},
                {"\x00\ud800": 8},
                {"x{99999999999}": 8},
                {"x" * 10_000: 8},
                {f"layer.{index}": 8 for index in range(20_000)},
                [],
                ["to_q"],
                "to_q",
                3,
            )
        )
    },
    "rank patterns of texts": _config(rank_pattern={"to_q": "2"}),
    "rank patterns of 0": _config(rank_pattern={"to_q": 0}),
    "a slow pattern": _config(alpha_pattern={r"[\w.]*[\w.]*[\w.]*z": 8}),
    "slow patterns": _config(alpha_pattern={rf"[\w.]*[\w.]*[\w.]*z{index}": 8 for index in range(300)}),
    "another kind": _config(peft_type="OFT", r=0),
    "another base": _config(init_lora_weights="pissa"),
}


def write_folder(folder: Path, tensors: bytes, config: bytes | None) -> Path:
    """Write a folder as PEFT does."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    if config is not None:
        (folder / "adapter_config.json").write_bytes(config)
    return folder
