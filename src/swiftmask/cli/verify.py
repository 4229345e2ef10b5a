"""`swiftmask verify`: a tool of the repository (tools/verify), which users of the package have no files for.

Errors: ValueError where the package is not installed from a checkout.
"""

import sys
from pathlib import Path

_TOOLS = Path(__file__).parents[3] / "tools"

if not (_TOOLS / "verify").is_dir():
    raise ValueError(
        "verify compares the models with recorded numbers of the references and is a tool of the repository: "
        "run it in a clone"
    )
sys.path.insert(0, str(_TOOLS))

from verify.__main__ import Verify  # noqa: E402 - its folder had to be found first

__all__ = ["Verify"]
