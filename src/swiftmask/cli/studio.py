"""`swiftmask studio`: the server of `swiftmask serve` with a page to generate images in a browser."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from swiftmask.cli.serve import Serve

if TYPE_CHECKING:
    from swiftmask.serve.app import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio(Serve):
    """Open a page that compares the full model with the accelerated one, as docs/studio.md describes it: on
    /studio of a server that answers all that swiftmask serve answers. Needs the extra studio.

    It listens on this machine alone unless --host says otherwise.
    """

    shown_path: ClassVar[str] = "/studio"

    def pages(self) -> "Sequence[Page]":
        """Errors: ValueError without gradio."""
        from swiftmask.studio.page import studio_page

        return [studio_page()]
