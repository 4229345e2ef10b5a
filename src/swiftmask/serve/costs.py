"""What a decode costs, told with every answer, without counting every decode.

Counting operations runs the decode on the meta device, which takes seconds. The operations of a step are a
polynomial of the tokens it reads and decides, so that a few counted steps tell all others. A prediction is
used only where the counted steps determine it and every one of them fits to the last operation; else the
schedule is counted.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from threading import RLock

import numpy as np

from swiftmask.core.types import Schedule, Step
from swiftmask.pipeline import Pipeline

_MOST_COUNTED = 512
"""Schedules whose counts are kept."""

_MOST_SAMPLES = 256
"""Counted steps that are kept for each kind of step."""


@dataclass(slots=True)
class _Samples:
    """Counted steps of one kind: what they read and decided, and their operations."""

    rows: list[list[float]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, row: list[float], count: int) -> None:
        if row not in self.rows and len(self.rows) < _MOST_SAMPLES:
            self.rows.append(row)
            self.counts.append(count)

    def predicted(self, row: list[float]) -> int | None:
        """Operations of a step, or None where these samples do not tell."""
        if row in self.rows:
            return self.counts[self.rows.index(row)]
        samples_XE, counts_X = np.array(self.rows, np.float64), np.array(self.counts, np.float64)
        if len(samples_XE) == 0 or len(samples_XE) <= (rank := np.linalg.matrix_rank(samples_XE)):
            return None
        wanted_E = np.array(row)
        if np.linalg.matrix_rank(np.vstack([samples_XE, wanted_E])) > rank:
            return None
        weights_E = np.linalg.lstsq(samples_XE, counts_X, rcond=None)[0]
        if np.abs(samples_XE @ weights_E - counts_X).max() > 0.5:
            return None
        return round(float(wanted_E @ weights_E))


class Operations:
    """Operations of one image's decode, by pipeline and schedule."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._counted: OrderedDict[Hashable, int] = OrderedDict()
        self._samples: dict[Hashable, _Samples] = defaultdict(_Samples)

    def of(self, name: Hashable, pipeline: Pipeline, schedule: Schedule) -> int:
        """Operations of a schedule; counts what is not known, in the thread of the model.

        Args:
            name: of the pipeline's weights, accelerator and size.
        """
        plain = [_plain(step) for step in schedule]
        described = _described(plain, pipeline.model.spec.num_tokens)
        if (told := self._told(name, plain, described)) is not None:
            return told
        with self._lock:
            known = [self._samples[name, kind].predicted(row) for kind, row in described]
        counts = pipeline.chain_flops(_to_the_last_unknown(known, plain))
        with self._lock:
            for (kind, row), count in zip(described, counts, strict=False):
                self._samples[name, kind].add(row, count)
        known[: len(counts)] = counts
        return self._keep(name, plain, known)

    def known(self, name: Hashable, pipeline: Pipeline, schedule: Schedule) -> int | None:
        """The same, in any thread; None where steps would have to be counted."""
        plain = [_plain(step) for step in schedule]
        return self._told(name, plain, _described(plain, pipeline.model.spec.num_tokens))

    def by_step(self, name: Hashable, pipeline: Pipeline, schedule: Schedule) -> list[int] | None:
        """Operations of each step, in any thread; None where steps would have to be counted."""
        plain = [_plain(step) for step in schedule]
        with self._lock:
            known = [
                self._samples[name, kind].predicted(row)
                for kind, row in _described(plain, pipeline.model.spec.num_tokens)
            ]
        counted = [count for count in known if count is not None]
        return counted if len(counted) == len(known) else None

    def _told(self, name: Hashable, schedule: Sequence[Step], described: "_Described") -> int | None:
        key = (name, tuple(schedule))
        with self._lock:
            if key in self._counted:
                self._counted.move_to_end(key)
                return self._counted[key]
            known = [self._samples[name, kind].predicted(row) for kind, row in described]
        return None if None in known else self._keep(name, schedule, known)

    def _keep(self, name: Hashable, schedule: Sequence[Step], counts: Sequence[int | None]) -> int:
        total = sum(count for count in counts if count is not None)
        with self._lock:
            self._counted[name, tuple(schedule)] = total
            if len(self._counted) > _MOST_COUNTED:
                self._counted.popitem(last=False)
        return total


def _to_the_last_unknown(known: Sequence[int | None], schedule: Sequence[Step]) -> Sequence[Step]:
    """The schedule up to its last step of unknown operations, and to its first guided one: guidance in any
    step gives all of them two branches.
    """
    last = max(place for place, count in enumerate(known) if count is None)
    guided = [place for place, step in enumerate(schedule) if step.guidance != 1.0]
    return schedule[: max(last, guided[0] if guided else 0) + 1]


def _plain(step: Step) -> Step:
    """Without the numbers that change no operation: how strong guidance is, and temperatures."""
    return replace(
        step, guidance=1.0 if step.guidance == 1.0 else 2.0, temperature=1.0, choice_temperature=0.0
    )


_Described = Sequence[tuple[Hashable, list[float]]]


def _described(schedule: Sequence[Step], num_tokens: int) -> _Described:
    """Of each step, its kind, and the numbers that its operations are a polynomial of, as shares."""
    guided = any(step.guidance != 1.0 for step in schedule)
    described: list[tuple[Hashable, list[float]]] = []
    for before, step in pairwise([None, *schedule]):
        assert step is not None
        masked, decided = step.num_masked_before / num_tokens, step.num_decided / num_tokens
        last = 0.0 if before is None else before.num_decided / num_tokens
        chain = None if step.denoising is None else step.denoising.num_steps
        kind = (step.full, guided, step.guidance != 1.0, chain, before is None)
        described.append((kind, [1.0, masked, masked**2, decided, last]))
    return described


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that an operation of the full model takes, by batch size, as measured when a server starts.

    Attributes:
        num_images: the two batch sizes that were measured, ascending.
        seconds: of a decode of so many images, for each operation of one image.
    """

    num_images: tuple[int, int]
    seconds: tuple[float, float]

    def per_image(self, operations: int, batch_size: int) -> float:
        """Seconds an image at a batch size, on the line through the two that were measured."""
        (few, many), (low, high) = self.num_images, self.seconds
        slope = (high - low) / (many - few) if many > few else 0.0
        return operations * max(low + slope * (batch_size - few), 0.0) / batch_size


def measured_pace(operations: Operations, name: Hashable, pipeline: Pipeline, max_batch: int) -> Pace | None:
    """Decode two steps with one image and with `max_batch`. The first decode of all is not measured.

    None for a model of prompts whose few words are not known here.
    """
    plain = replace(pipeline, steps=min(2, pipeline.model.spec.num_tokens))
    counted = operations.of(name, plain, plain.schedule())
    known = "0" if plain.model.spec.draws == "class" else _any_prompt(plain)
    if known is None:
        return None
    asked = [known]

    def seconds(count: int) -> float:
        of_class = plain.model.spec.draws == "class"
        result = plain.generate(
            asked * count if of_class else None, prompts=None if of_class else asked * count
        )
        return result.cost.seconds / counted

    seconds(1)
    return Pace((1, max_batch), (seconds(1), seconds(max_batch)))


def _any_prompt(pipeline: Pipeline) -> str | None:
    """A prompt that the model reads, also one of few words."""
    for text in ("a red circle", "a", "picture"):
        try:
            pipeline.model.encode([text])
        except ValueError:
            continue
        return text
    return None
