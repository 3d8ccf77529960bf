"""Import the packages of the extra `conversion`, when they are needed."""

import importlib
from typing import Any


def optional(package: str) -> Any:
    """Import a package of the extra `conversion`.

    Raises:
        ImportError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is not installed: pip install 'refiners[conversion]'") from error
