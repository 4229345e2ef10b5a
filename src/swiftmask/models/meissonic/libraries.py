"""The two libraries that hold the text encoder and the codec, imported when one is first built.

They are optional: the transformer itself, its training objective and its verification run without them.
"""

from importlib import import_module
from types import ModuleType

from swiftmask.core.files import first_line


def library(name: str) -> ModuleType:
    """A library by name. Errors: ValueError saying why it does not import, and how to install it."""
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"meissonic needs {name}, which does not import here ({first_line(error)}): pip install {name}"
        ) from error
