"""mkdocs hook: one reference page for each public module, its text taken from the docstrings by mkdocstrings."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias, cast

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Section: TypeAlias = list[str | dict[str, "Section"] | dict[str, str]]

PACKAGE = Path(__file__).parents[1] / "python" / "refiners"


def public_modules() -> list[str]:
    """List the modules that hold something of their own: no `__init__`, no underscore in front, the operators first."""
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = sorted(".".join(path.parts) for path in paths if not any(part.startswith("_") for part in path.parts))
    return sorted(names, key=lambda name: not name.startswith("refiners.ops"))


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
