"""The guide says what is supported as it is found: each cell is a file that is loaded and compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import support_table
from support_table import NETWORKS, PAGE, YES, Tables, found_tables, renewed
from update_files import FORMATS, Drawn


@pytest.mark.slow
def test_the_guide_says_what_is_found() -> None:
    page = PAGE.read_text()
    assert renewed(page) == page, "renew it: python tests/conversion/lora/support_table.py docs/guides/lora_support.md"
    assert found_tables().count(f"| {YES} ") > 200
    assert all(found_tables().count(f"| {format} |") == len(NETWORKS) for format in FORMATS)


def test_a_cell_that_would_lie_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, cell = Tables(tmp_path), ("OneTrainer", "LoRA", "Text encoder of Stable Diffusion 1.5 (CLIP L)")
    assert tables.cell(*cell) == YES
    written = support_table.write

    def write_otherwise(path: Path, format: str, updates: list[Drawn]) -> Path:
        first = updates[0]
        tensors = {**first.tensors, "up": first.tensors["up"] + 1e-5}
        return written(path, format, [first._replace(tensors=tensors), *updates[1:]])

    monkeypatch.setattr(support_table, "write", write_otherwise)
    with pytest.raises(AssertionError, match="something else is changed"):
        tables.cell(*cell)


def test_the_reason_is_that_of_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, cell = Tables(tmp_path), ("OneTrainer", "LoHa", "Text encoder of Stable Diffusion 1.5 (CLIP L)")
    written = support_table.write

    def write_half(path: Path, format: str, updates: list[Drawn]) -> Path:
        rest = ({role: each.tensors[role] for role in each.tensors if role != "hada_w1_a"} for each in updates)
        return written(path, format, [each._replace(tensors=tensors) for each, tensors in zip(updates, rest)])

    monkeypatch.setattr(support_table, "write", write_half)
    assert tables.cell(*cell) == "the matrix 'hada_w1_a' is missing"
