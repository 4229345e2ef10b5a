"""`swiftmask models`: what there is to load."""

import json as json_module
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swiftmask.registry import Kind, Weights, bundled_folder, bundled_names, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """List the bundled weights, and the models and accelerators cached from Hugging Face."""

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        found = [describe(bundled_folder(name)) for name in bundled_names()] + list(_cached())
        if self.json:
            print(json_module.dumps([_row(weights) for weights in found], indent=2))
            return 0
        _print_table(found)
        return 0


def _print_table(found: list[Weights]) -> None:
    """One table for each kind, which fit 80 columns; names are never cut."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for kind, (title, columns) in _TABLES.items():
        table = Table(title=f"\n{title}", title_justify="left", box=None, padding=(0, 1, 0, 0))
        for heading in columns:
            number = heading in ("steps", "params", "MB")
            table.add_column(
                heading,
                no_wrap=heading != "measured",
                overflow="fold",
                justify="right" if number else "left",
            )
        for weights in found:
            if weights.kind == kind:
                table.add_row(*(cell(weights) for cell in columns.values()))
        if table.rows:
            console.print(table)


_SIZES: dict[str, Callable[[Weights], str]] = {
    "params": lambda weights: _millions(weights.num_parameters),
    "MB": lambda weights: f"{weights.num_bytes / 1e6:.1f}",
    "measured": lambda weights: ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in list(weights.measured.items())[:2]
    ),
}

_TABLES: dict[Kind, tuple[str, dict[str, Callable[[Weights], str]]]] = {
    "model": (
        "models",
        {
            "name": lambda weights: weights.name,
            "family": lambda weights: weights.family,
            "generates": lambda weights: (
                "prompts" if weights.num_classes is None else f"{weights.num_classes} classes"
            ),
            "pixels": lambda weights: "x".join(map(str, weights.size or ())),
            "steps": lambda weights: str(weights.steps or ""),
            **_SIZES,
        },
    ),
    "method": (
        "accelerators",
        {
            "name": lambda weights: weights.name,
            "method": lambda weights: weights.family,
            "of": lambda weights: weights.draws or "",
            **_SIZES,
        },
    ),
    "reader": (
        "readers of images",
        {"name": lambda weights: weights.name, "network": lambda weights: weights.family, **_SIZES},
    ),
    "tokenizer": (
        "tokenizers",
        {
            "name": lambda weights: weights.name,
            "kind": lambda weights: weights.family,
            "pixels": lambda weights: "x".join(map(str, weights.size or ())),
            **_SIZES,
        },
    ),
}


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.1f} G"


def _row(weights: Weights) -> dict[str, object]:
    return {
        "name": weights.name,
        "kind": weights.kind,
        "family": weights.family,
        "draws": weights.draws,
        "classes": weights.num_classes,
        "size": weights.size,
        "steps": weights.steps,
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
        if weights.kind in ("model", "method"):
            yield weights
