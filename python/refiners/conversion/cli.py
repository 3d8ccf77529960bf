"""The command `get_weights`: download published weights and convert them."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import cast

from refiners.conversion import models
from refiners.conversion.utils import Conversion, Hub

logger = logging.getLogger(__name__)

_PACKAGES = ("huggingface_hub", "requests", "tqdm")


def all_weights() -> dict[str, Conversion | Hub]:
    """List what can be downloaded, by the name of its module and its own, such as `unet_sd15.runwayml`."""
    return {
        f"{module}.{name}": value
        for module in models.__all__
        for name, value in cast("dict[str, object]", vars(getattr(models, module))).items()
        if isinstance(value, (Conversion, Hub))
    }


def selected(names: Sequence[str]) -> dict[str, Conversion | Hub]:
    """List the weights of these names, each of one file or of a whole module; all of them if there is no name.

    Raises:
        ValueError: If there are none of a name.
    """
    weights = all_weights()
    for name in names:
        if not any(known == name or known.startswith(f"{name}.") for known in weights):
            raise ValueError(f"there are no weights of the name {name!r}; --list shows those there are")
    if not names:
        return weights
    return {
        known: value
        for known, value in weights.items()
        if any(known == name or known.startswith(f"{name}.") for name in names)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Download and convert weights into the local folder of weights; see `Hub.hub_location`.

    Without names, everything: about 170 GB. What fails is reported at the end, and does not stop the others.

    Args:
        argv: The arguments (default: those of the process).

    Raises:
        SystemExit: With status 1 if a package is missing or something failed, 2 for a wrong name.
    """
    parser = argparse.ArgumentParser(prog="get_weights", description="Download published weights and convert them.")
    parser.add_argument("names", nargs="*", help="files or modules, as unet_sd15.runwayml or loras (default: all)")
    parser.add_argument("--list", action="store_true", help="show what there is, and download nothing")
    arguments = parser.parse_args(argv)
    try:
        weights = selected(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        print("\n".join(weights))
        return
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        print(f"missing: {', '.join(missing)}; pip install 'refiners[conversion]'", file=sys.stderr)
        raise SystemExit(1)
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s - %(levelname)s - %(message)s")
    if failed := [name for name, value in weights.items() if not _get(name, value)]:
        print(f"{len(failed)} of {len(weights)} failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def _get(name: str, weights: Conversion | Hub) -> bool:
    logger.info(f"getting {name}")
    try:
        if isinstance(weights, Conversion):
            weights.convert()
        else:
            weights.download()
    except Exception:  # whatever one server answers, the others are asked too
        logger.exception(f"could not get {name}")
        return False
    return True
