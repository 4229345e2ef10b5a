"""`swiftmask generate --engine ray`: shards by a pool of processes, on one machine or on a cluster."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftmask.cli.drawing import Prepared, Spent
from swiftmask.cli.errors import USER_MISTAKES, one_line
from swiftmask.cli.generate_shards import Drawing, columns, finish, shard_folder, weights_of
from swiftmask.cli.loading import enter
from swiftmask.cli.progress import note, progress_bar
from swiftmask.core.settings import difference
from swiftmask.fleet.pool import Pool, Row, connected, once, spread
from swiftmask.fleet.shards import draw_shard
from swiftmask.training.lock import sole_writer

if TYPE_CHECKING:
    from swiftmask.cli.generate import Generate


def generate_on_ray(command: "Generate") -> int:
    """Generate the shards that are missing.

    This process needs no GPU and loads no model: a worker checks what is asked for, and tells the settings
    that the others must have, too.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--engine ray starts its own workers: run it without torchrun, with --workers")
    wanted = Pool(num_workers=command.workers, num_gpus=command.gpus_per_worker)
    with connected(wanted) as pool:
        here = str(Path.cwd())
        checked = _raised(once(pool, check, command, here))
        images, settings = checked["images"], checked["settings"]
        folder = shard_folder(command, len(images))
        with sole_writer(command.out):
            folder.begin(settings, images, overwrite=command.overwrite)
            rows: list[Row] = [
                {
                    "shard": shard,
                    "images": json.dumps([images[index] for index in folder.plan.indices(shard)]),
                }
                for shard in folder.missing()
            ]
            spent: list[Spent] = []
            with progress_bar() as progress:
                task = progress.add_task("shards", total=len(rows))
                if rows:
                    note(f"{settings['model']} on {min(pool.num_workers, len(rows))} workers")
                for answer in spread(pool, rows, Worker, (command, here, len(images), settings)):
                    spent += [Spent(**each) for each in json.loads(_raised(answer)["spent"])]
                    progress.advance(task)
            finish(command, folder, settings, spent)
    return 0


def check(command: "Generate", folder: str) -> Row:
    """In a worker: columns of all images, and the settings that they are generated with."""
    try:
        enter(folder)
        prepared = command.prepared()
        settings = prepared.settings | {"weights": weights_of(prepared.pipeline)}
        return {"images": columns(prepared), "settings": settings}
    except USER_MISTAKES as error:
        return {"error": one_line(error)}


class Worker:
    """Holds the model, and generates a shard at a time."""

    def __init__(self, command: "Generate", folder: str, num_images: int, settings: dict[str, Any]) -> None:
        self._command, self._folder, self._settings = command, folder, settings
        self._shards = shard_folder(command, num_images)
        self._opened: Prepared | None = None

    def __call__(self, row: Row) -> Row:
        """`row` names a shard and the columns of its images; what they took, or what is wrong."""
        shard = int(row["shard"])
        try:
            images = dict(zip(self._shards.plan.indices(shard), json.loads(row["images"]), strict=True))
            drawing = Drawing(self._prepared(), images)
            draw_shard(self._shards, shard, drawing, batch_size=self._command.batch_size)
        except USER_MISTAKES as error:
            return {"shard": shard, "spent": "[]", "error": one_line(error)}
        return {"shard": shard, "spent": json.dumps([asdict(each) for each in drawing.spent]), "error": ""}

    def _prepared(self) -> Prepared:
        if self._opened is None:
            enter(self._folder)
            opened = self._command.opened()
            settings = opened.settings | {"weights": weights_of(opened.pipeline)}
            if found := difference(self._settings, settings):
                raise ValueError(
                    f"{platform.node()} would generate with other settings than the first worker ({found}): "
                    "give all nodes the same models and the same kind of device"
                )
            self._opened = opened
        return self._opened


def _raised(answer: Row) -> Row:
    """The answer. Errors: ValueError for the mistake that it tells of."""
    if answer.get("error"):
        raise ValueError(answer["error"])
    return answer
