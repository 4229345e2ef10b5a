"""Readers of your own categories: a network that tells columns of a data source from pixels, as a reward and
as a judge. `swiftmask train reader` makes one (recipes/reader.py).

What an image is to show comes from the columns of a prompt file, from the metadata of a data source, or from
the class names of a model, which are values of columns with commas between them: "red apple, flat".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftmask.core.files import load_strict
from swiftmask.core.reading import read_tensors
from swiftmask.core.settings import check_sizes, read_json, read_settings
from swiftmask.rewards.reader_networks import ReaderNetwork, ReaderSettings, Reading
from swiftmask.rewards.scenes import WEIGHTS

AskedColumns = Mapping[str, Mapping[str, str]]
"""For every prompt, what its image is to show, by column."""

_EXPECTED = (
    "a reader is a folder with config.json and model.safetensors: train one with `swiftmask train reader "
    "data=FOLDER columns=COLUMN,...`"
)
_CHUNK = 256
_SEPARATOR = ", "
"""Between the values in the name of a class (data/sources/source.py)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What images are to show, as numbers.

    Attributes:
        columns: places of the columns that are asked about, among those of the reader.
        values_NA: int64, the number of the asked value of each of these columns, one row per prompt or class.
    """

    columns: tuple[int, ...]
    values_NA: Tensor


class ColumnReader(nn.Module):
    """A trained network that reads columns, frozen."""

    def __init__(self, network: ReaderNetwork) -> None:
        super().__init__()
        self.network = network

    @property
    def settings(self) -> ReaderSettings:
        return self.network.settings

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(self.settings.columns)

    def forward(self, images_B3HW: Tensor) -> Reading:
        """Read images in [0, 1] of any size; differentiable in them where gradients are wanted."""
        parts = [self._run(part) for part in images_B3HW.split(_CHUNK)]
        logits = zip(*(part.logits for part in parts), strict=True)
        return Reading(torch.cat([part.features_BD for part in parts]), tuple(map(torch.cat, logits)))

    def log_probabilities(self, images_B3HW: Tensor, wanted: Wanted, rows_B: Tensor) -> Tensor:
        """Of the asked values: [B, A].

        Args:
            rows_B: of `wanted`, one per image.
        """
        logits = self(images_B3HW).logits
        values_BA = wanted.values_NA[rows_B].to(images_B3HW.device)
        found = [
            logits[column].log_softmax(-1).gather(1, value_B[:, None].to(logits[column].device))
            for column, value_B in zip(wanted.columns, values_BA.unbind(1), strict=True)
        ]
        return torch.cat(found, dim=1)

    def wanted(self, rows: Sequence[Mapping[str, str]], named: Sequence[str]) -> Wanted:
        """What rows of columns ask for; columns that the reader has not learned are passed over.

        Args:
            named: what each row is of, for complaints: a prompt or a class.

        Errors: ValueError for rows with no column of the reader, for one that lacks a column which others
            have, and for a value that the reader has not learned.
        """
        names = self.column_names
        columns = tuple(i for i, name in enumerate(names) if any(name in row for row in rows))
        if not columns:
            raise ValueError(
                f"the reader {self.settings.name} reads {', '.join(names)}, and nothing says these of "
                f"{named[0]!r}: give prompts in a .jsonl or .csv file with these columns, or a data source "
                "that has them"
            )
        values = [
            [self._number(names[column], row, name) for column in columns]
            for row, name in zip(rows, named, strict=True)
        ]
        return Wanted(columns, torch.tensor(values))

    def wanted_of_classes(self, class_names: Sequence[str]) -> Wanted:
        """What class names ask for. Errors: ValueError for a name that is no values of the reader's."""
        if not class_names:
            raise ValueError(
                f"the reader {self.settings.name} finds what a class asks for in its name, and the classes "
                "of this model have no names"
            )
        return self.wanted([self._parsed(name) for name in class_names], class_names)

    def _parsed(self, class_name: str) -> dict[str, str]:
        """Columns of a class name, from left to right; a value may itself have commas."""
        parts, found = class_name.split(_SEPARATOR), {}
        start = 0
        while start < len(parts):
            places = (
                (end, column)
                for end in range(len(parts), start, -1)
                for column, values in self._places.items()
                if column not in found and _SEPARATOR.join(parts[start:end]) in values
            )
            end, column = next(places, (0, ""))
            if not end:
                raise ValueError(
                    f"the reader {self.settings.name} has not learned {parts[start]!r} of the class "
                    f"{class_name!r}: it reads {', '.join(self.column_names)}"
                )
            found[column] = _SEPARATOR.join(parts[start:end])
            start = end
        return found

    def _number(self, column: str, row: Mapping[str, str], name: str) -> int:
        if column not in row:
            raise ValueError(f"{name!r} has no column {column}, which others have")
        values = self._places[column]
        if row[column] not in values:
            near = get_close_matches(row[column], values, n=1)
            raise ValueError(
                f"the reader {self.settings.name} has not learned the {column} {row[column]!r} of {name!r}"
                + (f": did you mean {near[0]!r}?" if near else f" (it knows {len(values)} values)")
            )
        return values[row[column]]

    @property
    def _places(self) -> dict[str, dict[str, int]]:
        if "places" not in self.__dict__:
            columns = self.settings.columns
            self.__dict__["places"] = {
                name: {value: i for i, value in enumerate(values)} for name, values in columns.items()
            }
        return self.__dict__["places"]

    def _run(self, images_B3HW: Tensor) -> Reading:
        weight, side = self.network.head.weight, self.settings.resolution
        images_B3HW = images_B3HW.to(weight.device, weight.dtype)
        if images_B3HW.shape[-2:] != (side, side):
            images_B3HW = F.interpolate(images_B3HW, (side, side), mode="bilinear", antialias=True)
        return self.network(images_B3HW)


def reader_folder(source: str | Path) -> Path:
    """The folder of a reader that a user names: a path, or a bundled name.

    Errors: FileNotFoundError; ValueError for a folder of something else.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = bundled_reader(str(source)) or path
    if not path.is_dir():
        raise FileNotFoundError(f"no reader in {source}: {_EXPECTED}")
    if not is_reader(path):
        raise ValueError(f"{path} holds no reader of columns: {_EXPECTED}")
    return path


def bundled_reader(name: str) -> Path | None:
    """The folder of a bundled reader of columns; None for another name."""
    folder = WEIGHTS / name
    return folder if name and is_reader(folder) else None


def reader_name(source: str | Path) -> str:
    """The name that a reader was trained under. Errors: as `reader_folder`."""
    return str(read_json(reader_folder(source) / "config.json").get("name", source))


def is_reader(folder: Path) -> bool:
    """Whether a folder holds a reader of columns. Errors: ValueError for a damaged config.json."""
    path = folder / "config.json"
    return path.is_file() and {"network", "columns"} <= read_json(path).keys()


def load_column_reader(source: str | Path, device: torch.device | str = "cpu") -> ColumnReader:
    """A frozen reader from its folder. Errors: as `reader_folder`; ValueError for damaged weights."""
    folder = reader_folder(source)
    config, weights = folder / "config.json", folder / "model.safetensors"
    settings = read_settings(ReaderSettings, config, expected=_EXPECTED)
    if not weights.is_file():
        raise FileNotFoundError(f"no {weights}: {_EXPECTED}")
    state = read_tensors(weights)
    check_sizes(settings, state, source=str(config))
    with torch.device("meta"):
        network = ReaderNetwork(settings)
    load_strict(network, state, source=str(weights))
    return ColumnReader(network).to(device).eval().requires_grad_(False)


def prompt_rows(asked: AskedColumns) -> Callable[[Sequence[Any]], Tensor]:
    """`rows(prompts) -> rows_B`: places of prompts among those that are asked for.

    Errors: ValueError, when called, for a prompt that is none of them.
    """
    places = {prompt: place for place, prompt in enumerate(asked)}

    def rows(prompts: Sequence[Any]) -> Tensor:
        strange = next((prompt for prompt in prompts if prompt not in places), None)
        if strange is not None:
            raise ValueError(f"nothing says what {strange!r} asks for: its file must have columns")
        return torch.tensor([places[prompt] for prompt in prompts])

    return rows


def reader_reward(
    reader: ColumnReader, wanted: Wanted, rows: Callable[[Sequence[Any]], Tensor], *, log: bool = False
) -> Callable[[Tensor, Sequence[Any]], Tensor]:
    """`reward(images_B3HW, prompts or labels) -> scores_B`: mean probability of the asked values.

    Args:
        log: the mean of their logarithms instead, whose gradient does not vanish where the reader is sure of
            something else.
    """

    def reward(images_B3HW: Tensor, asked: Sequence[Any]) -> Tensor:
        found_BA = reader.log_probabilities(images_B3HW, wanted, rows(asked))
        return (found_BA if log else found_BA.exp()).mean(dim=1)

    return reward
