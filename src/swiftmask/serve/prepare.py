"""What a request asks for, on the model that it names: a job for the queue, and what its answer tells."""

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from swiftmask.core.settings import first_line
from swiftmask.core.types import Step
from swiftmask.data.images.inpainting import StartImage, start_image
from swiftmask.models.meissonic import Meissonic, with_negative
from swiftmask.pipeline import Pipeline
from swiftmask.serve.batches import Batches, Job, Row, Share
from swiftmask.serve.catalogue import Catalogue, Variant
from swiftmask.serve.costs import Operations, Pace
from swiftmask.serve.errors import RequestError
from swiftmask.serve.requests import Asked


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job, and the schedules whose cost its answer tells.

    Attributes:
        full: the full model's pipeline for the same request.
    """

    job: Job
    variant: Variant
    schedule: list[Step]
    full: Pipeline
    full_schedule: list[Step]


def prepare(catalogue: Catalogue, asked: Asked) -> Prepared:
    """Everything that may be wrong with a request is found here, before it is queued.

    Errors: RequestError.
    """
    variant = catalogue.find(asked.model, asked.preset, asked.size)
    start = _start(variant, asked)
    num_masked = None if start is None else start.num_drawn
    try:
        pipeline = _configured(variant.pipeline, asked)
        full = replace(variant.full, steps=pipeline.steps, sampling=pipeline.sampling)
        schedule = pipeline.schedule(num_masked=num_masked)
    except ValueError as error:
        raise RequestError(first_line(error), code="impossible_settings") from error
    what = _what(pipeline, asked, guided=any(step.guidance != 1.0 for step in schedule))
    job = Job(
        key=(variant.name, variant.size, tuple(schedule), start is not None),
        pipeline=pipeline,
        rows=[Row(each, seed, start) for each, seed in zip(what, asked.seeds, strict=True)],
        steps=len(schedule),
        num_partial=asked.num_partial,
    )
    return Prepared(job, variant, schedule, full, _full_schedule(full, num_masked))


def _full_schedule(full: Pipeline, num_masked: int | None) -> list[Step]:
    """The base's own; sampling options of another head (a MARVAL student's) are left out."""
    try:
        return full.schedule(num_masked=num_masked)
    except ValueError:
        return replace(full, sampling=type(full.sampling)()).schedule(num_masked=num_masked)


def _configured(pipeline: Pipeline, asked: Asked) -> Pipeline:
    """Errors: ValueError; RequestError."""
    steps = pipeline.steps if asked.steps is None else asked.steps
    full_steps, by_default = pipeline.full_steps, pipeline.full_steps_by_default
    if asked.full_steps is not None:
        if pipeline.features_fn is None:
            raise RequestError(
                "full_steps goes with a shortcut or caching: choose a model that has one (GET /v1/models)",
                param="full_steps",
            )
        if asked.full_steps > steps:
            raise RequestError(
                f"full_steps must be at most steps ({steps}), got {asked.full_steps}", param="full_steps"
            )
        full_steps, by_default = asked.full_steps, False
    elif steps != pipeline.steps and isinstance(full_steps, tuple):
        raise RequestError(
            f"this preset places its full steps in {pipeline.steps} steps: say how many of {steps} are "
            "full_steps, too",
            param="steps",
        )
    if isinstance(full_steps, int) and not by_default:
        full_steps = min(full_steps, steps)
    return replace(
        pipeline,
        steps=steps,
        sampling=asked.sampling.over(pipeline.sampling),
        full_steps=full_steps,
        full_steps_by_default=by_default,
        _flops={},
    )


def _start(variant: Variant, asked: Asked) -> StartImage | None:
    if asked.image is None:
        return None
    try:
        return start_image(asked.image, asked.mask, size=variant.size, grid=variant.pipeline.model.spec.grid)
    except ValueError as error:
        param = "mask" if asked.mask is not None and "mask" in str(error) else "image"
        raise RequestError(first_line(error), param=param, code="invalid_image") from error


def _what(pipeline: Pipeline, asked: Asked, *, guided: bool) -> Sequence[Any]:
    """Classes or prompts as the model takes them, each of which it can read."""
    model: Any = pipeline.model
    if asked.negative_prompt:
        if not isinstance(model, Meissonic):
            raise RequestError(
                f"{pipeline.name} takes no negative_prompt: leave it out", param="negative_prompt"
            )
        if not guided:
            raise RequestError("negative_prompt needs guidance above 1", param="negative_prompt")
    what: Any = asked.what
    try:
        if isinstance(model, Meissonic):
            if asked.negative_prompt:
                what = with_negative(asked.what, [asked.negative_prompt] * len(asked.what))
            model.check_prompts(list(dict.fromkeys(what)))
        else:
            model.encode(list(dict.fromkeys(what)))
    except ValueError as error:
        raise RequestError(first_line(error), param="prompt", code="unreadable_prompt") from error
    return what


class Costs:
    """What answers tell of cost. Operations that are not known are counted in the thread of the model."""

    def __init__(self, batches: Batches) -> None:
        self._operations = Operations()
        self._batches = batches
        self.pace: Pace | None = None

    @property
    def operations(self) -> Operations:
        return self._operations

    def counted(self, prepared: Prepared) -> "Future[tuple[int, int]]":
        """Operations of the decode and of the full model's. Ask when the job is queued: it goes first."""
        pairs = [
            (_name(prepared.variant), prepared.job.pipeline, prepared.schedule),
            (_full_name(prepared.variant), prepared.full, prepared.full_schedule),
        ]
        known = [self._operations.known(*pair) for pair in pairs]
        if None not in known:
            done: Future[tuple[int, int]] = Future()
            done.set_result((known[0], known[1]))  # type: ignore[arg-type]
            return done
        return self._batches.call(lambda: tuple(self._operations.of(*pair) for pair in pairs))

    def by_step(self, prepared: Prepared) -> list[int] | None:
        """Operations of each step, once they are counted."""
        return self._operations.by_step(_name(prepared.variant), prepared.job.pipeline, prepared.schedule)

    def told(self, prepared: Prepared, counts: tuple[int, int]) -> dict[str, object]:
        """The `cost` of an answer; milliseconds are those of a batch, divided by its images."""
        job, shares = prepared.job, prepared.job.shares
        own, full = counts
        queue_s = (job.started or job.arrived) - job.arrived
        batch_size = max(share.batch_size for share in shares)
        estimate = (
            {}
            if self.pace is None
            else {"ms_per_image_estimate": round(1000 * self.pace.per_image(full, batch_size), 3)}
        )
        return {
            "calls_per_image": job.pipeline.calls(prepared.schedule),
            "gflop_per_image": round(own / 1e9, 4),
            "ms_per_image": round(1000 * _per_image(shares, "seconds"), 3),
            "decoder_ms_per_image": round(1000 * _per_image(shares, "decoder_seconds"), 3),
            "images": len(job.rows),
            "batch_size": batch_size,
            "queue_ms": round(1000 * queue_s, 3),
            "full_model": {
                "calls_per_image": prepared.full.calls(prepared.full_schedule),
                "gflop_per_image": round(full / 1e9, 4),
                **estimate,
            },
        }


def _per_image(shares: Sequence[Share], of: str) -> float:
    """Mean over the images of a job."""
    total = sum(share.num_rows for share in shares)
    return sum(share.num_rows * getattr(share, of) / share.batch_size for share in shares) / total


def _name(variant: Variant) -> Hashable:
    return variant.name, variant.size


def _full_name(variant: Variant) -> Hashable:
    return variant.full.name, variant.size
