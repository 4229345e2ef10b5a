"""How far a student's tokens are from its teacher's where nothing was trained: the energy score.

    E|x - y| - E|x - x'| / 2    (Gneiting and Raftery 2007, equation 21)

x and x' are tokens that the student generates for one context, y a token that the guided teacher's whole
chain generates for it. In expectation it is lowest where both have the same distribution. The losses of the
training do not serve here: they are relative to an auxiliary network that changes with the student.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from swiftmask.core.protocol import DenoisingModel, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas
from swiftmask.methods.marval.student import Student

_DRAWS = 4
"""Of the student, for each token."""


class HeldOutScore:
    """The energy score of a student, on the same contexts and with the same noise at every call.

    Args:
        canvas: partly masked real tokens, on the teacher's device.
        what: classes or prompts of them.
        guidance: of the teacher, constant over a decode.
    """

    def __init__(
        self, teacher: DenoisingModel, canvas: Canvas, what: Sequence[int] | Sequence[str], guidance: float
    ) -> None:
        self._teacher, self._canvas, self._what, self._guidance = teacher, canvas, what, guidance
        self._positions_BM = canvas.masked_positions()
        self._teachers_BMC: Tensor | None = None

    @torch.no_grad()
    def __call__(self, student: Student) -> float:
        """In units of the tokens; lower is better."""
        drawn_KBMC = torch.stack([self._drawn(student, 1.0, 1 + draw) for draw in range(_DRAWS)])
        if self._teachers_BMC is None:
            self._teachers_BMC = self._drawn(self._teacher, self._guidance, 0)
        to_teacher = (drawn_KBMC - self._teachers_BMC).norm(dim=-1).mean()
        first, second = torch.triu_indices(_DRAWS, _DRAWS, offset=1, device=drawn_KBMC.device)
        apart = (drawn_KBMC[first] - drawn_KBMC[second]).norm(dim=-1).mean()
        return float(to_teacher - apart / 2)

    def _drawn(self, model: DenoisingModel | Student, guidance: float, stream: int) -> Tensor:
        """Tokens [B, M, C] at the masked positions."""
        count, length = len(self._what), model.spec.num_tokens
        noise = SeededNoise(range(stream * count, (stream + 1) * count), length, model.device)
        options = SamplingOptions(temperature=1.0)
        (step,) = model.schedule(1, num_masked=self._canvas.num_masked, options=options)
        condition = model.encode(self._what)
        if guidance != 1.0:
            condition = model.with_null(condition)
        features_GBTD = model.features(self._canvas, condition)
        distribution = model.tokens(features_GBTD, self._positions_BM, guidance)
        return distribution.sample(noise, replace(step, guidance=guidance))[0].float()
