"""What a scorer measures, and the mean of a measure over evaluation seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One measure of images.

    Attributes:
        compared: whether the table says what fewer steps at equal cost give of it.
        group: heading of the table that it stands in; empty for the main one.
    """

    key: str
    label: str
    higher_is_better: bool
    compared: bool = False
    group: str = ""

    def better(self, value: float, other: float) -> bool:
        return value > other if self.higher_is_better else value < other

    @property
    def heading(self) -> str:
        return self.label if self.group else f"{self.label} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over evaluation seeds (0 for a single one)."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0)

    def text(self, digits: int) -> str:
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f}"
