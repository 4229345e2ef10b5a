"""Libraries that only this family needs, imported when they are used."""

from importlib import import_module
from typing import Any

from swiftmask.core.files import first_line


def require(library: str, purpose: str) -> Any:
    """The library. Errors: ValueError saying how to install it, or why it does not import."""
    try:
        return import_module(library)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"{purpose} needs {library}, which does not import here ({first_line(error)}): "
            f"pip install {library}"
        ) from error
