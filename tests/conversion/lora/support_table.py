"""Write which updates are attached, by format, kind and network: `python support_table.py PAGE.md`.

Every cell is a file that is written, loaded, and compared: what the network then gives must be what it gives with the
changed weights, in float64.
"""

from __future__ import annotations

import re
import sys
import tempfile
from functools import cache
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "foundationals/latent_diffusion/lora")]

import torch  # noqa: E402
from random_edits import Lora, Pristine, Reference  # noqa: E402
from tiny_models import layers_of, make_tiny, output_of  # noqa: E402
from update_files import FORMATS, NoSuchFile, choose, draw_updates, write  # noqa: E402
from update_kinds import KINDS  # noqa: E402

from refiners.foundationals.latent_diffusion.lora import SDLoraManager  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "lora_support.md"
BEGIN, END = "<!-- the tables -->\n", "<!-- the end of the tables -->\n"
NETWORKS = {
    "U-Net of Stable Diffusion 1.5": ("sd1", "unet"),
    "U-Net of Stable Diffusion XL": ("sdxl", "unet"),
    "Text encoder of Stable Diffusion 1.5 (CLIP L)": ("sd1", "text_encoder"),
    "First text encoder of Stable Diffusion XL (CLIP L)": ("sdxl", "text_encoder"),
    "Second text encoder of Stable Diffusion XL (OpenCLIP G)": ("sdxl", "text_encoder_2"),
}
COLUMNS = [kind for kind in KINDS if kind != "IA3 of PEFT"]
YES = "yes"


class Tables:
    """Finds what each cell says.

    Args:
        folder: Where files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.references = {kind: Reference(kind) for kind in ("sd1", "sdxl")}
        self.models = {kind: Pristine(make_tiny(kind).to(dtype=torch.float64)) for kind in ("sd1", "sdxl")}
        self.layers = {kind: layers_of(make_tiny(kind)) for kind in ("sd1", "sdxl")}

    def cell(self, format: str, kind: str, network: str) -> str:
        """Write a file, load it, and say yes or why not; raise `AssertionError` if it is loaded as something else."""
        which, part = NETWORKS[network]
        pristine = self.models[which]
        try:
            updates = draw_updates(format, kind, choose(self.layers[which], format, kind, part, 6), seed=1)
        except NoSuchFile as reason:
            return str(reason)
        path = write(self.folder / "file.safetensors", format, updates)
        manager = SDLoraManager(pristine.model)
        try:
            plan = manager.load("x", path)
        except ValueError as error:
            return _reason(str(error))
        assert plan.is_whole and len(manager.loras) == len(updates)
        output = "unet" if part == "unet" else "text_encoder"
        found, before = output_of(pristine.model, output), pristine.outputs[output]
        expected = self.references[which].outputs([Lora(updates, 1.0)], [], [output])[output]
        change = (expected - before).norm()
        where = f"{kind}, {format}, {network}"
        assert change > 1e-3 * before.norm(), f"{where}: the file changes nothing"
        assert (found - expected).norm() <= 1e-9 * change, f"{where}: something else is changed"
        manager.remove_all()
        return YES

    def check(self) -> None:
        """Assert that the models are what they were."""
        for pristine in self.models.values():
            pristine.check()


def _reason(message: str) -> str:
    """Take the reason that most updates are refused for out of an error."""
    found = re.findall(r"^  \d+: (.*?)(?::.*)?$", message, re.MULTILINE)
    return found[0] if found else message.partition(": ")[2].partition("\n")[0]


def write_tables(tables: Tables) -> str:
    """Write all tables, and the reasons under them."""
    reasons: dict[str, str] = {}
    lines: list[str] = []
    for network in NETWORKS:
        lines += [f"### {network}", "", f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
        for format in FORMATS:
            cells = (tables.cell(format, kind, network) for kind in COLUMNS)
            marks = [cell if cell == YES else reasons.setdefault(cell, f"({len(reasons) + 1})") for cell in cells]
            lines.append(f"| {format} | {' | '.join(marks)} |")
        lines.append("")
    tables.check()
    lines += [f"- {mark} {reason}" for reason, mark in reasons.items()]
    return "\n".join(lines) + "\n"


@cache
def found_tables() -> str:
    """Find all tables."""
    with tempfile.TemporaryDirectory() as folder:
        return write_tables(Tables(Path(folder)))


def renewed(page: str) -> str:
    """Give a page with the tables as they are found."""
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:begin]}\n{found_tables()}\n{page[end:]}"


def main(path: Path) -> None:
    """Write the tables into a page."""
    path.write_text(renewed(path.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE)
