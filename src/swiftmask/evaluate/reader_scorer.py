"""A reader of columns as a scorer: how likely, and how often first, it names what was asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swiftmask.evaluate.extractors import Identity
from swiftmask.evaluate.feature_store import Readings
from swiftmask.evaluate.quantities import Quantity
from swiftmask.evaluate.scorers import Generated, Images
from swiftmask.rewards.reader import ColumnReader, Wanted

_TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderScorer:
    """Mean probability of the asked values; of each column the share of images whose value comes first, or
    among the first five.

    Attributes:
        wanted: what is asked for.
        rows: places in `wanted` of classes or prompts.
    """

    identity: Identity
    reader: ColumnReader
    wanted: Wanted
    rows: Callable[[Sequence[Any]], Tensor]

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        name = self.identity.name
        main = Quantity(key=name, label=name, higher_is_better=True, compared=True)
        tops = [
            Quantity(key=key, label=f"{column} top-{top}", higher_is_better=True, group=f"Read by {name}")
            for key, column, top, _ in self._tops
        ]
        return (main, *tops)

    @property
    def note(self) -> str:
        columns = " and ".join(column for column, _ in self._asked)
        return (
            f"{self.identity.name}: mean probability of the asked {columns}, sha256 "
            f"{self.identity.sha256[:12]}; top-1 and top-{_TOP}: share of images whose {columns} it names "
            f"first, or among its first {_TOP}."
        )

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        values_BA = self.wanted.values_NA[self.rows(asked)]
        with torch.inference_mode():
            logits = self.reader(generated.images_B3HW.float()).logits
        probabilities, ranks = [], []
        for place, value_B in zip(self.wanted.columns, values_BA.unbind(1), strict=True):
            scores_BV = logits[place].cpu()
            own_B1 = scores_BV.gather(1, value_B[:, None])
            probabilities.append(scores_BV.softmax(-1).gather(1, value_B[:, None])[:, 0])
            ranks.append((scores_BV > own_B1).sum(-1).int())
        return {"probability": torch.stack(probabilities, 1), "rank": torch.stack(ranks, 1)}

    def values(self, images: Images) -> dict[str, float]:
        rank_XA = images.own["rank"]
        found = {self.identity.name: images.own["probability"].double().mean().item()}
        for key, _, top, place in self._tops:
            found[key] = (rank_XA[:, place] < top).double().mean().item()
        return found

    def floors(self, seed: int, count: int) -> dict[str, float]:
        return {}

    @property
    def _asked(self) -> list[tuple[str, int]]:
        """Name and number of values of each column that is asked about."""
        columns = list(self.reader.settings.columns.items())
        return [(columns[place][0], len(columns[place][1])) for place in self.wanted.columns]

    @property
    def _tops(self) -> list[tuple[str, str, int, int]]:
        """Key, column, how many names count, and the column's place; five say little of a few values."""
        return [
            (f"{column}_top{top}_{self.identity.name}", column, top, place)
            for place, (column, number) in enumerate(self._asked)
            for top in (1, _TOP)
            if top == 1 or number > 2 * top
        ]
