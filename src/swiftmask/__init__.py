"""swiftmask: masked image generators, accelerated, with the cost and the quality measured.

The public names are looked up on first use, so that `import swiftmask` is quick and does no work.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiftmask.api import accelerate, load
    from swiftmask.core.steering import Steer
    from swiftmask.pipeline import Cost, Pipeline, Result
    from swiftmask.presets import apply_preset

__version__ = "0.1.0"
__all__ = ["Cost", "Pipeline", "Result", "Steer", "__version__", "accelerate", "apply_preset", "load"]

_HOMES = {
    "load": "swiftmask.api",
    "accelerate": "swiftmask.api",
    "apply_preset": "swiftmask.presets",
    "Pipeline": "swiftmask.pipeline",
    "Result": "swiftmask.pipeline",
    "Cost": "swiftmask.pipeline",
    "Steer": "swiftmask.core.steering",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'swiftmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
