"""The contract of a data source, and what follows from it: splits, labels, captions."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_HASHED = 10_000
"""Items are held out in parts of one ten-thousandth."""


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Classes of a source's items.

    Attributes:
        names: one per class.
        labels_X: int64, one per item.
        attributes_NA: integers, A for each class: what classes have in common, such as a concept and a style.
            One column of its own number for classes that have nothing in common.
    """

    names: tuple[str, ...]
    labels_X: Tensor
    attributes_NA: Tensor

    @classmethod
    def of_columns(cls, rows: Sequence[tuple[str, ...]]) -> "Classes":
        """One class for each combination of values that occurs, named "red apple, flat".

        Args:
            rows: values of the chosen columns, one tuple per item.
        """
        combinations = sorted(set(rows))
        place = {row: i for i, row in enumerate(combinations)}
        values = [sorted({row[column] for row in combinations}) for column in range(len(combinations[0]))]
        numbers = [{value: i for i, value in enumerate(each)} for each in values]
        attributes = [[numbers[c][value] for c, value in enumerate(row)] for row in combinations]
        return cls(
            names=tuple(", ".join(row) for row in combinations),
            labels_X=torch.tensor([place[row] for row in rows]),
            attributes_NA=torch.tensor(attributes),
        )


class Source(Protocol):
    """Images with a condition.

    Attributes:
        name: for provenance, such as "products".
        keys: one stable name per item; caches and splits go by it.
        classes: None without classes.
        splits: "train" or another word per item, where the source itself says so; else empty.
        licence: as the source states it; empty if it does not.
        notice: licences and attributions that go with weights trained on the images; empty without any.
        column_names: of what the source says of every item in words, such as "concept" and "style".
        identity: tells apart whatever would give other images for one key: decoding rules, seeds.
        facts: of its own, for the provenance of a model.
    """

    @property
    def name(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def classes(self) -> Classes | None: ...
    @property
    def splits(self) -> Sequence[str]: ...
    @property
    def licence(self) -> str: ...
    @property
    def notice(self) -> str: ...
    @property
    def column_names(self) -> Sequence[str]: ...
    @property
    def identity(self) -> str: ...
    @property
    def facts(self) -> dict[str, object]: ...

    def read(self, index: int, size: int) -> Tensor:
        """Pixels uint8 [3, size, size]. Errors: OSError; ValueError naming an item that cannot be read."""
        ...

    def stamp(self, index: int) -> str:
        """Changes when the item's content does, and is cheap: date and size of a file."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Ways to ask for the item; empty without captions."""
        ...

    def column(self, name: str) -> Sequence[str]:
        """One value per item. Errors: ValueError for a column that is not there or has gaps."""
        ...

    def notices(self) -> list[str]:
        """Sentences about what was passed over or converted."""
        ...


def held_out(source: Source, share: float) -> Tensor:
    """Which items are held out: bool [X].

    The source's own splits count where it has them; otherwise the hash of the key decides, so that an item
    never moves when others are added.
    """
    if source.splits:
        return torch.tensor([split != "train" for split in source.splits])
    hashes = [zlib.crc32(key.encode("utf-8", "surrogateescape")) % _HASHED for key in source.keys]
    return torch.tensor(hashes) < share * _HASHED


def labels_of(source: Source) -> Classes:
    """Errors: ValueError for a source without classes."""
    if source.classes is None:
        raise ValueError(
            f"{source.name} has no classes: expected one subfolder a class, or a class column of metadata "
            "(source.classes=COLUMN)"
        )
    return source.classes


def asked_of_captions(source: Source, items: Sequence[int] | None = None) -> dict[str, dict[str, str]]:
    """For every caption, what the image that it belongs to shows, by column.

    Args:
        items: places of images; None takes all.
    """
    columns = {name: source.column(name) for name in source.column_names}
    return {
        text: {name: values[i] for name, values in columns.items()}
        for i in (range(len(source.keys)) if items is None else items)
        for text in source.captions(i)
    }


def require_captions(source: Source) -> None:
    """Errors: ValueError for items without a caption, saying how many and naming three."""
    without = [key for i, key in enumerate(source.keys) if not source.captions(i)]
    if without:
        named = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        raise ValueError(
            f"{len(without)} of {len(source.keys)} images of {source.name} have no caption ({named}): "
            "expected metadata.jsonl or metadata.csv with a column text, or NAME.txt beside NAME.png"
        )
