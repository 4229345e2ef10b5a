"""`swiftmask models`: what there is to load."""

import json as json_module
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swiftmask.registry import Weights, bundled_folder, bundled_names, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """List the models, accelerators and readers there are: bundled, and cached from Hugging Face."""

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        found = [describe(bundled_folder(name)) for name in bundled_names()] + list(_cached())
        if self.json:
            print(json_module.dumps([_row(weights) for weights in found], indent=2))
            return 0
        from rich.console import Console
        from rich.table import Table

        table = Table("name", "kind", "family", "parameters", "on disk", "measured")
        for weights in found:
            table.add_row(
                weights.name,
                weights.kind,
                weights.family,
                f"{weights.num_parameters:,}",
                f"{weights.num_bytes / 1e6:.1f} MB",
                ", ".join(f"{key} {value}" for key, value in list(weights.measured.items())[:3]),
            )
        Console().print(table)
        return 0


def _row(weights: Weights) -> dict[str, object]:
    return {
        "name": weights.name,
        "kind": weights.kind,
        "family": weights.family,
        "parameters": weights.num_parameters,
        "bytes": weights.num_bytes,
        "measured": weights.measured,
        "folder": str(weights.folder),
    }


def _cached() -> Iterator[Weights]:
    """Repositories of the Hugging Face cache that are folders of ours."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    for config in sorted(cache.glob("models--*/snapshots/*/config.json")):
        repo_id = config.parents[2].name.removeprefix("models--").replace("--", "/")
        try:
            weights = describe(config.parent, repo_id)
        except (ValueError, OSError):  # another library's model, or one half downloaded
            continue
        if weights.kind != "reader":
            yield weights
