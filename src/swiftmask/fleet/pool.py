"""A pool of processes on Ray that works through a list: on this machine, or on the cluster it belongs to.

Ray Data streams the list through actors, each of which is made once and holds what it loaded. A dead actor is
started again, and what it was working on is done again by it or by another one. No task reads data, so that
actors which hold every CPU cannot keep a reader waiting, the deadlock of pools on small machines.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from swiftmask.core.optional import library

Row = dict[str, Any]

_RESTARTS, _RETRIES = 20, 5
"""Of an actor, and of a task. A task that kills its actor again and again ends the run."""

_LOCAL_STORE_BYTES = 200 * 2**20
"""Rows are small; images go to disk, not through Ray's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How many processes.

    Attributes:
        num_gpus: of each process; None is 1 where the cluster has GPUs, else 0.
    """

    num_workers: int
    num_gpus: float | None = None


@contextmanager
def connected(pool: Pool) -> Iterator[Pool]:
    """Connect to the cluster that RAY_ADDRESS names or this machine belongs to, or start one here that ends
    with this; yields the pool with its number of GPUs.

    Errors: ValueError if ray is not installed, or the cluster has fewer CPUs or GPUs than the pool needs.
    """
    ray = library("ray", "--engine ray")
    if ray.is_initialized():
        yield _fitting(ray, pool)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data itself does
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address="auto", **said)
    except ConnectionError:
        ray.init(
            address="local",
            num_cpus=pool.num_workers + 1,
            include_dashboard=False,
            object_store_memory=_LOCAL_STORE_BYTES,
            **said,
        )
    try:
        yield _fitting(ray, pool)
    finally:
        ray.shutdown()


def once(pool: Pool, function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a function that runs in a process like those of a connected pool."""
    ray = import_module("ray")
    remote = ray.remote(num_cpus=1, num_gpus=pool.num_gpus, max_retries=_RETRIES)(function)
    return ray.get(remote.remote(*arguments))


def spread(
    pool: Pool, rows: Sequence[Row], worker: Callable[..., Callable[[Row], Row]], arguments: tuple[Any, ...]
) -> Iterator[Row]:
    """Work through rows with a connected pool; yields the answers as they come.

    Args:
        worker: `worker(*arguments)` is made in each process, and called with one row at a time.

    Errors: ChildProcessError if one row kills its worker again and again.
    """
    if not rows:
        return
    data = import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*ray_remote_args", module=__name__)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    done = data.from_items(list(rows), override_num_blocks=len(rows)).map(
        worker,
        fn_constructor_args=arguments,
        compute=data.ActorPoolStrategy(
            size=min(pool.num_workers, len(rows)),
            max_tasks_in_flight_per_actor=1,  # a row that waits behind another one would wait for its actor
        ),
        num_cpus=1,
        num_gpus=pool.num_gpus,
        ray_remote_args_fn=lambda: {"max_restarts": _RESTARTS, "max_task_retries": _RETRIES},
    )
    try:
        yield from done.iter_rows()
    except import_module("ray.exceptions").RayActorError as error:
        raise ChildProcessError(
            f"workers died {_RETRIES + 1} times at one of their tasks, for want of memory perhaps; the same "
            "command continues"
        ) from error


def _fitting(ray: Any, pool: Pool) -> Pool:
    """Errors: ValueError for a pool that would wait for ever."""
    there: Mapping[str, float] = ray.cluster_resources()
    gpus = there.get("GPU", 0.0)
    num_gpus = (1.0 if gpus else 0.0) if pool.num_gpus is None else pool.num_gpus
    for kind, needed, found in (
        ("CPUs", pool.num_workers, there.get("CPU", 0.0)),
        ("GPUs", pool.num_workers * num_gpus, gpus),
    ):
        if needed > found:
            raise ValueError(
                f"--workers {pool.num_workers} need {needed:g} {kind}, and the cluster has {found:g}: give "
                "fewer"
            )
    return Pool(num_workers=pool.num_workers, num_gpus=num_gpus)
