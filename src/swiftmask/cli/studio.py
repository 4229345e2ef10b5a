"""`swiftmask studio`: the server of `swiftmask serve` with a page to generate images in a browser."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from swiftmask.cli import measure
from swiftmask.cli.serve import Serve

if TYPE_CHECKING:
    from swiftmask.pipeline import Pipeline
    from swiftmask.serve.app import Page
    from swiftmask.serve.catalogue import Catalogue

_ACCELERATORS = ("shortcut", "caching", "marval", "speed_rl", "preset")
_OF_LOADING = ("codec", "text_encoder", "dtype", "device", "blocks_on_device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio(Serve):
    """Open a page that compares the full model with the accelerated one, as docs/studio.md describes it: on
    /studio of a server that answers all that swiftmask serve answers. Needs the extra studio.

    Without an accelerator it offers the model's own, and feature reuse. It listens on this machine alone
    unless --host says otherwise.
    """

    report: Path | None = None
    """Page that swiftmask bench made of the model, for a tab."""

    shown_path: ClassVar[str] = "/studio"

    def pages(self) -> "Sequence[Page]":
        """Errors: ValueError without gradio, or for a report that is no page; FileNotFoundError."""
        if self.report is not None:
            if not self.report.is_file():
                raise FileNotFoundError(f"no such report: {self.report} (`swiftmask bench MODEL` makes one)")
            with self.report.open("rb") as file:
                if b"<html" not in file.read(1024).lower():
                    raise ValueError(f"{self.report} is no HTML page: expected the one of swiftmask bench")
        from swiftmask.studio.code import Source
        from swiftmask.studio.page import studio_page

        options = {
            name: str(getattr(self, name))
            for name in _OF_LOADING
            if getattr(self, name) not in (None, "auto")
        }
        presets = {path.stem: str(path) for path in self.preset}
        return [studio_page(Source(model=self.model, options=options, presets=presets), self.report)]

    def _catalogue(self, base: "Pipeline") -> "Catalogue":
        """What was asked for, or else what the model has beside it."""
        chosen: Studio = self
        if not any(getattr(self, name) for name in _ACCELERATORS):
            own = {name: ("auto",) for name in measure.METHODS if measure.has_own(self.model, name)}
            chosen = replace(self, caching=("reuse",), **own)
        return Serve._catalogue(chosen, base)
