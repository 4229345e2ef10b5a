"""How one image fills up: which steps ran the backbone, what they decided, and how sure the head was."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.tokens import CategoricalTokens
from swiftmask.core.types import Record
from swiftmask.evaluate.report.gallery import image_uri
from swiftmask.evaluate.sheets import canvas_image

DECIDED = 255
"""In a confidence map: this position was decided before the step."""

_FRAME = 128
"""Pixels of a frame's longer side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One step of a decode.

    Attributes:
        num_masked: positions still masked when the step ended.
        frame: data URI of the image then, undecided positions grey.
        confidence: per position, percent that the head gave its likeliest token when the step began, or
            `DECIDED`; None where the head cannot say.
    """

    full: bool
    num_decided: int
    num_masked: int
    frame: str
    confidence: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The decode of one image.

    Attributes:
        row: name of the row that drew it.
        grid: rows and columns of its tokens.
    """

    row: str
    grid: tuple[int, int]
    moments: tuple[Moment, ...]


@dataclass
class TimelineRecorder:
    """An `on_step` that watches the first image of a decode."""

    model: MaskedGenerator
    moments: list[Moment] = field(default_factory=list)

    def __call__(self, record: Record) -> None:
        confidence_L = _confidence(self.model, record)
        self.moments.append(
            Moment(
                full=record.step.full,
                num_decided=record.step.num_decided,
                num_masked=record.step.num_masked_after,
                frame=image_uri(canvas_image(self.model, record.after), at_most=_FRAME),
                confidence=None if confidence_L is None else bytes(confidence_L.tolist()),
            )
        )

    def timeline(self, row: str) -> Timeline:
        """What was seen."""
        return Timeline(row=row, grid=self.model.spec.grid, moments=tuple(self.moments))


def _confidence(model: MaskedGenerator, record: Record) -> Tensor | None:
    """Percent of the likeliest code at every position that was masked: uint8 [L]."""
    positions_BM = record.before.masked_positions()
    head = model.tokens(record.features.features_GBTD, positions_BM, record.step.guidance)
    if not isinstance(head, CategoricalTokens):
        return None
    likeliest_BM = (head.logits_BMV / record.step.temperature).softmax(dim=-1).amax(dim=-1)
    confidence_L = torch.full((model.spec.num_tokens,), DECIDED, dtype=torch.uint8)
    confidence_L[positions_BM[0].cpu()] = (100 * likeliest_BM[0]).round().to("cpu", torch.uint8)
    return confidence_L
