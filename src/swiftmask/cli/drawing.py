"""What `swiftmask generate` is asked for, ready to be generated batch by batch, and what that costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftmask.cli import jobs
from swiftmask.cli.jobs import Job

if TYPE_CHECKING:
    from PIL import Image

    from swiftmask.core.types import Record
    from swiftmask.data.images.inpainting import StartImage
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Prepared:
    """A loaded model and the images that are asked of it, which it can generate.

    Attributes:
        settings: all that decides an image besides its class or prompt and its seed.
        start: what every image starts from.
    """

    pipeline: "Pipeline"
    wanted: Sequence[Job]
    settings: dict[str, Any]
    start: "StartImage | None" = None
    flops: bool = False

    @property
    def of_class(self) -> bool:
        """Whether the model takes classes, not prompts."""
        return self.pipeline.model.spec.draws == "class"

    def draw(
        self, batch: Sequence[Job], *, on_step: "Callable[[Record], None] | None" = None
    ) -> "tuple[list[Image.Image], Spent]":
        """The images of a batch, and what they took. Operations are counted if `flops` is set."""
        asked: Any = jobs.asked_of(batch)
        result = self.pipeline.generate(
            asked if self.of_class else None,
            prompts=None if self.of_class else asked,
            seeds=[job.seed for job in batch],
            start=self.start,
            on_step=on_step,
        )
        assert isinstance(result.images, list)
        cost = result.cost
        gflop = round(cost.flops / 1e9, 4) if self.flops else None
        return result.images, Spent(len(batch), cost.seconds, cost.decoder_seconds, cost.calls, gflop)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a batch of images took; calls and operations are the same for every image."""

    num_images: int
    seconds: float
    decoder_seconds: float
    calls: dict[str, int]
    gflop: float | None


def cost_of(batches: Sequence[Spent]) -> dict[str, Any] | None:
    """Of one image, for generate.json; None if nothing was generated."""
    if not batches:
        return None
    count = sum(spent.num_images for spent in batches)
    gflop = next((spent.gflop for spent in batches if spent.gflop is not None), None)
    return {
        "calls_per_picture": batches[0].calls,
        **({} if gflop is None else {"gflop_per_picture": gflop}),
        "ms_per_picture": round(1000 * sum(spent.seconds for spent in batches) / count, 3),
        "decoder_ms_per_picture": round(1000 * sum(spent.decoder_seconds for spent in batches) / count, 3),
    }


def sentence(summary: dict[str, Any], out: Path) -> str:
    drawn, cost = summary["drawn"], summary["cost"]
    if cost is None:
        return f"{summary['skipped']} images are already in {out}, generated with these settings"
    skipped = f" ({summary['skipped']} were already there)" if summary["skipped"] else ""
    calls = ", ".join(
        f"{count} {part}" for part, count in cost["calls_per_picture"].items() if part != "branches"
    )
    counted = f" and {cost['gflop_per_picture']:.3f} GFLOP" if "gflop_per_picture" in cost else ""
    return (
        f"{drawn} images in {out}{skipped}: {cost['ms_per_picture']:.1f} ms{counted} each "
        f"(calls: {calls}), and {cost['decoder_ms_per_picture']:.1f} ms to turn tokens into pixels"
    )
