"""What a search tried and found, as it is published."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from swiftmask.core.writing import write_text
from swiftmask.evaluate.presets import Numbers, Settings
from swiftmask.evaluate.summary import Spread
from swiftmask.evaluate.tuning.halving import Objective, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One candidate, as it was last seen.

    Attributes:
        pictures: it drew, all evaluation seeds together.
        loss: relative, against the best full model on the same pictures; its spread is a standard error.
    """

    name: str
    gflop_per_picture: float
    pictures: int
    score: Spread
    fd_scenes: Spread
    loss: Spread
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """A whole search.

    Attributes:
        asked: the bounds, in words.
        answer: what came of it, in words.
        reference, best_full: the full model at the reference's steps, and the best full model there was.
        found: the candidate that the preset holds, or None if nothing meets the bounds.
        confirmed: the finalists, on pictures that the search did not look at.
        searched: every candidate as the search last saw it; those seen longest come first.
    """

    model: str
    commit: str
    date: str
    machine: str
    command: str
    asked: str
    answer: str
    objective: Objective
    reference: Numbers
    best_full: Numbers
    found: str | None
    preset: str | None
    confirmed: list[Tried]
    searched: list[Tried]


def tried(standings: Sequence[Standing]) -> list[Tried]:
    """Standings as they are published."""
    return [
        Tried(
            name=standing.candidate.row.name,
            gflop_per_picture=standing.candidate.row.flops / 1e9,
            pictures=standing.pictures,
            score=standing.score,
            fd_scenes=standing.fd_scenes,
            loss=standing.loss,
            settings=standing.candidate.settings,
        )
        for standing in standings
    ]


def numbers(standing: Standing) -> Numbers:
    """A standing as a preset records it."""
    return Numbers(
        name=standing.candidate.row.name,
        gflop_per_picture=standing.candidate.row.flops / 1e9,
        ms_per_picture=standing.ms_per_picture,
        score=standing.score,
        fd_scenes=standing.fd_scenes,
    )


def percent(loss: Spread) -> str:
    """A relative loss with its standard error: "1.2 % (± 0.4)"."""
    return f"{100 * loss.mean:.1f} % (± {100 * loss.spread:.1f})"


def write_tuning_report(report: TuningReport, path: Path) -> None:
    """The report as JSON, whole or not at all."""
    write_text(path, json.dumps(asdict(report), indent=2) + "\n")
