"""Load damaged files in a process of limited memory: `python damaged_files.py FOLDER KIND START STOP STEP`.

What does not hold is printed, one line of JSON for each case, and at last what became of all.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "foundationals/latent_diffusion/lora"), str(Path(__file__).parent)]

from damaged_others import CONFIGS, PICKLES, write_folder  # noqa: E402
from file_checker import Case, Checker, Counted  # noqa: E402
from mutations import NAMES, mutate  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_models import layers_of, make_tiny  # noqa: E402
from update_files import FORMATS, NoSuchFile, choose, draw_updates, write  # noqa: E402
from update_kinds import KINDS  # noqa: E402

MODELS = ("sd1", "sdxl")
MOST_MEMORY = 512 << 20  # bytes, beside what a process has that has loaded some files


def write_corpus(folder: Path) -> dict[str, Path]:
    """Write a file of each format, kind and network."""
    files: dict[str, Path] = {}
    for model in MODELS:
        layers = layers_of(make_tiny(model))
        for format in FORMATS:
            for kind in [kind for kind in KINDS if kind != "IA3 of PEFT"]:
                for network in dict.fromkeys(layer.network for layer in layers):
                    if (model, format) == ("sdxl", "LyCORIS") and network != "unet":
                        continue  # names without the network: they may mean either text encoder
                    try:
                        updates = draw_updates(format, kind, choose(layers, format, kind, network, 2))
                    except NoSuchFile:
                        continue
                    title = f"{model}, {format}, {kind}, {network}"
                    files[title] = write(folder / f"{len(files)}.safetensors", format, updates)
    return files


def make_case(kind: str, number: int, files: list[tuple[str, Path]], folder: Path) -> tuple[str, Case]:
    """Write a case, always the same for a number; the kind of its model comes with it."""
    rng = random.Random(number)
    title, source = files[rng.randrange(len(files))]
    if kind == "folder":
        name = list(CONFIGS)[number % len(CONFIGS)]
        content = source.read_bytes()
        path = write_folder(folder / f"case-{number}", content, CONFIGS[name])
    elif kind == "torch":
        name = list(PICKLES)[number % len(PICKLES)]
        path, content = folder / f"case-{number}.pt", PICKLES[name](load_file(source), rng)
    else:
        name = NAMES[number % len(NAMES)]
        path, content = folder / f"case-{number}.safetensors", mutate(source.read_bytes(), name, rng)
    if kind != "folder":
        path.write_bytes(content)
    return title.partition(",")[0], Case(f"{name}, {title}", path, content)


def main(folder: Path, kind: str, cases: range) -> None:
    """Check some cases of a kind of file."""
    files = list(write_corpus(folder).items())
    checkers = {model: Checker(make_tiny(model)) for model in MODELS}
    for title, path in files[::8]:
        became = checkers[title.partition(",")[0]].check(Case(title, path, path.read_bytes()))
        assert became == "attached", f"{title}: {became}"
    _count_what_is_read()
    _limit_memory()
    counts: Counter[str] = Counter()
    for number in cases:
        model, case = make_case(kind, number, files, folder)
        try:
            counts[checkers[model].check(case)] += 1
        except Exception as error:
            complaint = f"{type(error).__name__}: {str(error)[:2000]}"
            print(json.dumps({"case": f"{number}: {case.title}", "complaint": complaint}), flush=True)
            checkers[model] = Checker(make_tiny(model))
        if case.path.is_dir():
            shutil.rmtree(case.path)
        else:
            case.path.unlink()
    print(json.dumps({"cases": len(cases), **counts}))


def _count_what_is_read() -> None:
    opened = Path.open

    def open_counted(self: Path, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        return Counted(self, mode) if buffering == 0 else opened(self, mode, buffering, *args, **kwargs)

    Path.open = open_counted  # type: ignore[method-assign]


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], range(*map(int, sys.argv[3:6])))
