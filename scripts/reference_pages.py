"""mkdocs hook: one reference page for each public module, its text taken from the docstrings by mkdocstrings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TypeAlias, cast

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Section: TypeAlias = list[str | dict[str, "Section"] | dict[str, str]]

MORE = [
    "refiners.fluxion.context",
    "refiners.foundationals.clip.concepts",
    "refiners.foundationals.clip.tokenizer",
    "refiners.conversion.model_converter",
]
PROGRAMS = ("refiners.bench", "refiners.demo", "refiners.doctor", "refiners.generate")  # documented by their --help
PACKAGE = Path(__file__).parents[1] / "python" / "refiners"


def public_modules() -> list[str]:
    """List the modules that a package re-exports something from, and the few others that are meant for import."""
    names = set(MORE)
    for init in PACKAGE.rglob("__init__.py"):
        imports = (node for node in ast.parse(init.read_text()).body if isinstance(node, ast.ImportFrom))
        names.update(node.module for node in imports if node.module and "._" not in node.module)
    names = {name for name in names if name.startswith("refiners.") and not name.startswith(PROGRAMS)}
    return sorted(name for name in names if (PACKAGE.parent / name.replace(".", "/")).with_suffix(".py").is_file())


def page_of(module: str) -> str:
    """Give the path of a module's page within the documentation."""
    return "reference/" + "/".join(module.split(".")[1:]) + ".md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the pages to the section `Reference` of the navigation, in the folders of the package."""
    sections = cast("list[dict[str, Section]]", config.nav)
    for module in public_modules():
        section = next(entry["Reference"] for entry in sections if "Reference" in entry)
        *folders, name = module.split(".")[1:]
        for folder in folders:
            known = next((entry[folder] for entry in section if isinstance(entry, dict) and folder in entry), None)
            if not isinstance(known, list):
                section.append({folder: (known := [])})
            section = known
        section.append({name: page_of(module)})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves."""
    for module in public_modules():
        files.append(File.generated(config, page_of(module), content=f"# `{module}`\n\n::: {module}\n"))
    return files
