"""A study: every row under every evaluation seed, resumable.

The folder holds `measurements.jsonl` (first line: which model) and the tokens of reference rows; every file
is written whole or not at all, so a killed run continues where it was. Seeds are the outer loop: what the
machine does meanwhile hits all rows alike. A row whose own weights or schedule changed is measured again;
results of another base model are refused. A damaged line is skipped, and its row measured again.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from swiftmask.core.reading import DAMAGES, some
from swiftmask.core.settings import first_line, parse_json, record_of
from swiftmask.core.writing import remove_partials, write_text, written_whole
from swiftmask.evaluate.processes import ALONE, Processes
from swiftmask.evaluate.quality import Measurement, RealPictures, Row, Sample, measure

_log = logging.getLogger(__name__)

OnProgress = Callable[[str, int], None]
"""`on_progress(row name, pictures)`: called for every batch drawn and for every measurement found done."""


@dataclass(frozen=True, slots=True)
class Store:
    """Measurements of one base model in a folder.

    Args:
        model: name and fingerprint of the base model.
        commit, date: written beside what is measured from now on.
    """

    folder: Path
    model: str
    commit: str | None = None
    date: str | None = None
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def path(self) -> Path:
        return self.folder / "measurements.jsonl"

    def read(self) -> list[Measurement]:
        """Everything measured so far. Damaged lines are skipped and logged, once; `add` drops them.

        If the first line is damaged, rows are still told apart by their own fingerprints.

        Errors: ValueError if the file belongs to another model, or has no whole line.
        """
        if not self.path.exists():
            return []
        found: str | None = None
        measurements, damaged = [], []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            try:
                if number == 1:
                    found = _model(line)
                elif line.strip():
                    measurements.append(_measurement(line))
            except ValueError:
                damaged.append(str(number))
        if damaged and found is None and not measurements:
            raise ValueError(f"{self.path} holds no measurements: remove it to start anew")
        if found not in (None, self.model):
            raise ValueError(
                f"{self.path} holds results of another model ({found}, this is {self.model}): remove "
                f"{self.folder} or choose another --out"
            )
        if damaged:
            self._say_once(
                f"{self.path}: skipped damaged lines ({some(damaged)}): measuring their rows again"
            )
        return measurements

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _log.warning(line)

    def add(self, measurement: Measurement) -> list[Measurement]:
        """Write one more, and return all there are: several processes can share the work of a study."""
        measurement = replace(measurement, commit=self.commit, date=self.date)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            remove_partials(self.folder)
            others = {_key(other): other for other in self.read()}
            found = [*(others | {_key(measurement): measurement}).values()]
            lines = [{"model": self.model}, *map(_line, found)]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        return found

    def read_tokens(self, row: Row, seed: int, count: int) -> np.ndarray | None:
        """None if there are none; damaged ones count as none, and are logged."""
        path = self._tokens_path(row, seed, count)
        if not path.exists():
            return None
        try:
            tokens_XL = np.array(np.load(path, mmap_mode="r"))  # mapped: never larger than the file
            if tokens_XL.ndim != 2 or len(tokens_XL) != count or tokens_XL.dtype.kind not in "iu":
                raise ValueError(
                    f"it holds {tokens_XL.dtype} {tokens_XL.shape}, expected {count} rows of tokens"
                )
            return tokens_XL
        except DAMAGES as error:
            self._say_once(f"{path} is damaged ({first_line(error)}): measuring its row again")
            return None

    def write_tokens(self, row: Row, seed: int, tokens_XL: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._tokens_path(row, seed, len(tokens_XL))
        with FileLock(self.folder / ".lock"), written_whole(path) as partial, partial.open("wb") as file:
            np.save(file, tokens_XL)

    def _tokens_path(self, row: Row, seed: int, count: int) -> Path:
        return self.folder / f"tokens-{row.fingerprint}-{seed}-{count}.npy"


def run_study(
    rows: Sequence[Row],
    sample: Sample,
    store: Store,
    real: RealPictures,
    on_progress: OnProgress = lambda row, count: None,
    *,
    processes: Processes = ALONE,
) -> list[Measurement]:
    """Measure what is missing; returns the measurements of `rows`, seed by seed.

    Args:
        processes: that call this with the same rows and folder; each measures its share, and all return the
            same.

    Errors: ValueError for repeated names, a reference that is no row, or results of another model.
    """
    turns = _references_first(rows)
    done = {_key(m): m for m in store.read()}
    wanted = []
    for seed in range(sample.num_seeds):
        for turn in turns:
            mine = processes.share(turn)
            for row in turn:
                key = (row.name, row.fingerprint, seed, sample.num_pictures, row.reference is not None)
                wanted.append(key)
                is_done = key in done and not _lacks_tokens(row, rows, store, seed, sample)
                if is_done or row not in mine:
                    on_progress(row.name, sample.num_pictures)
                    continue
                measurement = _measure(row, rows, sample, store, real, seed, on_progress)
                done |= {_key(m): m for m in store.add(measurement)}
            processes.wait()
    done |= {_key(m): m for m in store.read()}
    return [done[key] for key in wanted]


def _measure(
    row: Row,
    rows: Sequence[Row],
    sample: Sample,
    store: Store,
    real: RealPictures,
    seed: int,
    on_progress: OnProgress,
) -> Measurement:
    reference = next((other for other in rows if other.name == row.reference), None)
    reference_XL = None if reference is None else store.read_tokens(reference, seed, sample.num_pictures)
    measurement, tokens_XL = measure(
        row,
        seed,
        sample,
        real,
        reference_XL=reference_XL,
        on_pictures=lambda count: on_progress(row.name, count),
    )
    if _is_reference(row, rows):
        store.write_tokens(row, seed, tokens_XL)
    return measurement


def _model(line: bytes) -> str:
    """What the first line names. Errors: ValueError if it is damaged."""
    model = parse_json(line, source="line 1").get("model")
    if not isinstance(model, str):
        raise ValueError(f"line 1 names no model: got {model!r}")
    return model


def _measurement(line: bytes) -> Measurement:
    """Errors: ValueError unless every field is there and of its type."""
    return record_of(Measurement, parse_json(line, source="line"), source="line")


def _line(measurement: Measurement) -> dict[str, object]:
    """A measurement as it is written; what not every one has is left out where it is unknown."""
    optional = ("training_reward", "diversity", "by_kind", "commit", "date")
    return {k: v for k, v in asdict(measurement).items() if not (k in optional and v is None)}


def _key(measurement: Measurement) -> tuple[str, str, int, int, bool]:
    compared = measurement.agreement is not None
    return measurement.row, measurement.fingerprint, measurement.seed, measurement.num_pictures, compared


def _is_reference(row: Row, rows: Sequence[Row]) -> bool:
    return any(other.reference == row.name for other in rows)


def _lacks_tokens(row: Row, rows: Sequence[Row], store: Store, seed: int, sample: Sample) -> bool:
    return _is_reference(row, rows) and store.read_tokens(row, seed, sample.num_pictures) is None


def _references_first(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Two turns: rows that need no other row's tokens, and those that do."""
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"row names must differ, got {', '.join(names)}")
    unknown = [row.reference for row in rows if row.reference is not None and row.reference not in names]
    if unknown:
        raise ValueError(f"no row is called {unknown[0]}: choose the reference among {', '.join(names)}")
    return [row for row in rows if row.reference is None], [row for row in rows if row.reference is not None]
