"""`swiftmask generate --shards`: many images in shards, by one process or by those that torchrun started."""

import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swiftmask.cli.drawing import Prepared, Spent, cost_of, sentence
from swiftmask.cli.jobs import Job
from swiftmask.cli.loading import say_where
from swiftmask.cli.progress import progress_bar
from swiftmask.evaluate.processes import Processes
from swiftmask.fleet.shards import MANIFEST, Plan, ShardFolder, draw_shard
from swiftmask.fleet.writers import Columns, Entry
from swiftmask.training.lock import sole_writer

if TYPE_CHECKING:
    from swiftmask.cli.generate import Generate
    from swiftmask.pipeline import Pipeline


def generate_shards(command: "Generate") -> int:
    """Generate the shards that are missing; process r of n takes every n-th from the r-th on."""
    prepared, processes = command.prepared(), Processes.here()
    settings = prepared.settings | {"weights": weights_of(prepared.pipeline)}
    images = columns(prepared)
    folder = shard_folder(command, len(images))
    with sole_writer(command.out):
        processes.wait()  # no other begins before the first holds the folder
        missing: list[int] = []
        if processes.rank == 0:
            folder.begin(settings, images, overwrite=command.overwrite)
            missing = folder.missing()
        missing = processes.gathered(missing)[0]
        drawing = Drawing(prepared, dict(enumerate(images)))
        if missing:
            say_where(prepared.pipeline)
        with progress_bar(shown=processes.rank == 0) as progress:
            own = processes.share(missing)
            task = progress.add_task("shards", total=len(own))
            for shard in own:
                draw_shard(folder, shard, drawing, batch_size=command.batch_size)
                progress.advance(task)
        spent = [each for found in processes.gathered(drawing.spent) for each in found]
        if processes.rank == 0:
            finish(command, folder, settings, spent)
    return 0


def shard_folder(command: "Generate", num_images: int) -> ShardFolder:
    """Where the shards of a command go."""
    return ShardFolder(command.out, command.shards or "folder", Plan(num_images, command.shard_size))


def weights_of(pipeline: "Pipeline") -> str:
    """Fingerprint of all weights that generate: those of the model and of what accelerates it."""
    from swiftmask.evaluate.fingerprints import exact_fingerprint

    return exact_fingerprint(pipeline.model, pipeline.features_fn)


def finish(
    command: "Generate", folder: ShardFolder, settings: dict[str, Any], spent: Sequence[Spent]
) -> None:
    """Complete the manifest, and say on stdout what was generated."""
    folder.complete()
    drawn = sum(batch.num_images for batch in spent)
    summary = {
        "settings": settings,
        "drawn": drawn,
        "skipped": folder.plan.num_images - drawn,
        "cost": cost_of(spent),
        "shards": folder.plan.num_shards,
        "manifest": str(command.out / MANIFEST),
    }
    text = json.dumps(summary, indent=2)
    print(text if command.json else sentence(summary, command.out))


def columns(prepared: Prepared) -> list[Columns]:
    """What the shards tell of each image, from which `Drawing` generates it."""
    caption = "label" if prepared.of_class else "text"
    negatives = any(job.negative for job in prepared.wanted)
    return [
        {
            caption: job.what,
            "seed": job.seed,
            **({"negative_prompt": job.negative} if negatives else {}),
        }
        for job in prepared.wanted
    ]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Generates images by their indices, and keeps what they took.

    Attributes:
        images: columns by index, as `columns` gives them.
    """

    prepared: Prepared
    images: Mapping[int, Columns]
    spent: list[Spent] = field(default_factory=list)

    def __call__(self, indices: Sequence[int]) -> list[Entry]:
        """The images, encoded."""
        told = [self.images[index] for index in indices]
        images, took = self.prepared.draw([_job(each) for each in told])
        self.spent.append(took)
        with ThreadPoolExecutor() as threads:  # a PNG of 512x512 pixels takes longer than a GPU's decode
            encoded = list(threads.map(_png, images))
        return [Entry(index, each, png) for index, each, png in zip(indices, told, encoded, strict=True)]


def _job(told: Columns) -> Job:
    what = told["label"] if "label" in told else told["text"]
    return Job(str(what), int(told["seed"]), str(told.get("negative_prompt", "")))


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
