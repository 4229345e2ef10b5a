"""The queue without HTTP: what shares a decode, and what becomes of jobs that fail, wait or are given up."""

import asyncio
import gc
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import swiftmask
from swiftmask.core.types import Record
from swiftmask.evaluate.fingerprints import weights_fingerprint
from swiftmask.evaluate.presets import Measured, Numbers, Preset, Settings, write_preset
from swiftmask.evaluate.quantities import Spread
from swiftmask.serve.batches import Batches, BatchLimits, Job, Row, StoppedError
from swiftmask.serve.catalogue import Accelerators, Catalogue
from swiftmask.serve.costs import Operations
from swiftmask.serve.errors import RequestError
from swiftmask.serve.prepare import prepare
from swiftmask.serve.requests import Asked, RequestLimits, read_fields
from swiftmask.serve.service import images_to_come


class Sizes:
    """What a watcher hears."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def batch_done(self, size: int, seconds: float) -> None:
        self.sizes.append(size)


@contextmanager
def batches(**limits: float) -> Iterator[tuple[Batches, Sizes]]:
    sizes = Sizes()
    made = Batches(BatchLimits(**limits), sizes)  # type: ignore[arg-type]
    try:
        yield made, sizes
    finally:
        made.close()


def job(pipeline: swiftmask.Pipeline, *seeds: int, what: str = "3", key: str = "a", steps: int = 3) -> Job:
    rows = [Row(what, seed) for seed in seeds]
    return Job(key=key, pipeline=replace(pipeline, steps=steps), rows=rows, steps=steps)


def test_jobs_of_one_key_share_a_decode(tiny_pipeline: swiftmask.Pipeline) -> None:
    with batches(max_batch=8, max_wait_s=30) as (queue, heard):
        jobs = [job(tiny_pipeline, seed, key="ab"[seed % 2]) for seed in range(9)]
        for each in jobs:
            queue.submit(each)
        closing = threading.Thread(target=queue.close)  # nothing waits for more any longer
        closing.start()
        images = [each.future.result(30) for each in jobs]
        closing.join()
    assert sorted(heard.sizes) == [4, 5]
    for seed, (image,) in enumerate(images):
        alone = tiny_pipeline.generate([3], seeds=[seed], steps=3).images[0]
        assert np.array_equal(np.array(image), np.array(alone))


def test_a_full_batch_does_not_wait(tiny_pipeline: swiftmask.Pipeline) -> None:
    with batches(max_batch=2, max_wait_s=600) as (queue, heard):
        jobs = [job(tiny_pipeline, 0), job(tiny_pipeline, 1)]
        for each in jobs:
            queue.submit(each)
        assert [len(each.future.result(30)) for each in jobs] == [1, 1]
    assert heard.sizes == [2]


def test_one_image_that_fails_fails_alone(
    tiny_pipeline: swiftmask.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Its batch is halved; the others are answered, once each."""
    with batches(max_batch=8, max_wait_s=0.2) as (queue, _):
        jobs = [job(tiny_pipeline, seed, what="nothing" if seed == 2 else "3") for seed in range(5)]
        for each in jobs:
            queue.submit(each)
        for seed, each in enumerate(jobs):
            if seed == 2:
                with pytest.raises(ValueError, match="unknown class 'nothing'"):
                    each.future.result(30)
            else:
                assert len(each.future.result(30)) == 1
    assert "a decode failed" in caplog.text


def test_a_job_that_is_given_up_stops_at_the_next_step(tiny_pipeline: swiftmask.Pipeline) -> None:
    with batches(max_batch=1, max_wait_s=0) as (queue, heard):
        begun, seen = threading.Event(), []
        running = job(tiny_pipeline, 0, steps=12)
        running.num_partial = 11

        def on_partial(row: int, index: int, image: object) -> None:
            seen.append(index)
            begun.set()
            time.sleep(0.05)

        running.on_partial = on_partial
        waiting, last = job(tiny_pipeline, 1), job(tiny_pipeline, 2)
        for each in (running, waiting, last):
            queue.submit(each)
        assert begun.wait(30)
        running.cancel()
        waiting.cancel()
        for each in (running, waiting):
            with pytest.raises(StoppedError):
                each.future.result(30)
        assert len(last.future.result(30)) == 1, "the model still works"
    assert len(seen) < 11
    assert heard.sizes == [1], "one decode ended, the other one never began"


def test_a_full_queue_says_when_to_come_again(tiny_pipeline: swiftmask.Pipeline) -> None:
    with batches(max_batch=4, max_wait_s=600, max_queue=3) as (queue, _):
        queue.submit(job(tiny_pipeline, 0, 1))
        with pytest.raises(RequestError, match="2 images wait, at most 3 may") as refused:
            queue.submit(job(tiny_pipeline, 2, 3))
        assert (refused.value.status, refused.value.retry_after) == (429, 2)
    with pytest.raises(RequestError, match="stopping"):
        queue.submit(job(tiny_pipeline, 0))


def test_a_decode_that_a_step_ends_leaves_the_pipeline_as_it_was(tiny_pipeline: swiftmask.Pipeline) -> None:
    def stop(record: Record) -> None:
        raise StoppedError

    before = tiny_pipeline.generate([3], seeds=[1], steps=3).images[0]
    with pytest.raises(StoppedError):
        tiny_pipeline.generate([3], seeds=[1], steps=3, on_step=stop)
    after = tiny_pipeline.generate([3], seeds=[1], steps=3).images[0]
    assert np.array_equal(np.array(before), np.array(after))


def asked(**fields: object) -> Asked:
    return read_fields({"seed": 0, **fields}, RequestLimits())


def test_equal_settings_share_a_key_however_they_are_given(tiny_catalogue: Catalogue) -> None:
    keys = [
        prepare(tiny_catalogue, asked(prompt="1")).job.key,
        prepare(tiny_catalogue, asked(prompt="2", steps=15, model="tiny", size="8x8")).job.key,
        prepare(tiny_catalogue, asked(prompt="2", guidance=3.8)).job.key,
    ]
    assert len(set(keys)) == 1
    others = [{"steps": 4}, {"guidance": 2}, {"temperature": 2}, {"model": "tiny+shortcut"}]
    assert (
        len({prepare(tiny_catalogue, asked(prompt="1", **other)).job.key for other in others} | {*keys}) == 5
    )


def test_a_model_of_prompts_and_several_sizes(golden_meissonic, tmp_path) -> None:
    golden_meissonic.save_pretrained(tmp_path / "words", provenance={})
    catalogue = Catalogue.of(swiftmask.load(tmp_path / "words"), Accelerators(caching=["reuse"]))
    words = {"prompt": "a red circle", "negative_prompt": "blue", "steps": 4, "guidance": 3}
    made = prepare(catalogue, asked(**words, size="16x8", model="words+reuse"))
    assert made.variant.size == (8, 16) and made.variant.pipeline.features_fn is not None
    with batches(max_batch=2, max_wait_s=0) as (queue, _):
        queue.submit(made.job)
        (image,) = made.job.future.result(60)
    assert image.size == (16, 8)
    for wrong, param in (({"prompt": "a green circle"}, "prompt"), ({"size": "10x10"}, "size")):
        with pytest.raises(RequestError) as refused:
            prepare(catalogue, asked(**{**words, **wrong}))
        assert refused.value.param == param


def test_operations_of_other_schedules_are_predicted(
    tiny_catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few schedules were counted, no more is, and every number is the counted one."""
    name, operations = "tiny+shortcut", Operations()
    pipeline = tiny_catalogue.variants[name].pipeline
    for steps in (12, 9, 7, 5):
        operations.of(name, pipeline, pipeline.schedule(steps))
    wanted = {steps: pipeline.schedule(steps) for steps in (6,)}
    counted = {steps: sum(pipeline.chain_flops(schedule)) for steps, schedule in wanted.items()}
    monkeypatch.setattr(type(pipeline), "chain_flops", None)
    assert {s: operations.known(name, pipeline, schedule) for s, schedule in wanted.items()} == counted


def test_presets_and_several_of_a_kind_are_chosen_by_name(
    tiny_pipeline: swiftmask.Pipeline, tiny_shortcut_folder: Path, tmp_path: Path
) -> None:
    settings = Settings(steps=6, caching="reuse", full_steps=(0, 3))
    applied = swiftmask.accelerate(replace(tiny_pipeline, steps=6), caching="reuse", full_steps=(0, 3))
    numbers = Numbers(name="x", gflop=1.0, ms=1.0, values={})
    measured = Measured(
        found=numbers, reference=numbers, best_full=numbers, speedup=2.0, objective="score",
        loss=Spread(0.0, 0.0), pictures=1, seeds=1, dtype="float32", commit="a", date="b", machine="c",
        command="d",
    )  # fmt: skip
    preset = Preset(
        model="tiny",
        fingerprint=weights_fingerprint(tiny_pipeline.model),
        accelerated_fingerprint=weights_fingerprint(applied.model, applied.features_fn),
        settings=settings,
        measured=measured,
    )
    write_preset(preset, tmp_path / "fast.json")
    other = shutil.copytree(tiny_shortcut_folder, tmp_path / "other")
    accelerators = Accelerators(
        shortcut=[str(tiny_shortcut_folder), str(other)], presets=[tmp_path / "fast.json"]
    )
    catalogue = Catalogue.of(tiny_pipeline, accelerators)
    assert list(catalogue.variants) == [
        "tiny", "tiny+shortcut:tiny-shortcut", "tiny+shortcut:other", "tiny+preset:fast",
    ]  # fmt: skip
    chosen = prepare(catalogue, asked(prompt="3", preset="fast"))
    assert [step.index for step in chosen.schedule if step.full] == [0, 3]
    with pytest.raises(RequestError, match="places its full steps in 6 steps"):
        prepare(catalogue, asked(prompt="3", preset="fast", steps=5))
    moved = prepare(catalogue, asked(prompt="3", preset="fast", steps=5, full_steps=2))
    assert len(moved.schedule) == 5 and sum(step.full for step in moved.schedule) == 2
    with pytest.raises(ValueError, match="two of the shortcut sources have the same name"):
        Catalogue.of(tiny_pipeline, Accelerators(shortcut=[str(other), str(other)]))


def test_a_job_that_fails_after_everyone_went_leaves_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    """Else asyncio logs an error with its traceback whenever somebody presses Stop."""
    pipeline = swiftmask.load("maskgit-scenes")

    async def leave() -> None:
        job = Job(key="any", pipeline=pipeline, rows=(), steps=1)
        waiting = images_to_come(job)
        job.fail(StoppedError())
        await asyncio.wait({waiting})

    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop of a browser
        thread.submit(lambda: asyncio.run(leave())).result()
    gc.collect()
    assert "never retrieved" not in caplog.text
