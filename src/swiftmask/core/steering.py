"""What a caller may change while a decode runs: the guidance of the steps to come, and whether they come.

All of it is decided on the host from numbers that the schedule has, so the loop still reads nothing back from
the device, and shapes stay those that compiled blocks know: guidance never changes how many tokens a step
decides, nor how many branches run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from swiftmask.core.ranges import GUIDANCE, check
from swiftmask.core.types import Record, Schedule, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Steer:
    """What `on_step` returns to change the rest of a run.

    Attributes:
        guidance: scale for the steps to come, as `generate(guidance=...)` takes it: a model whose guidance
            grows over a decode goes on along the curve of this scale. None leaves it.
        stop: end the run after this step. The images show what is decided, and grey elsewhere.

    Errors: ValueError for a guidance out of range; TypeError for a `stop` that is no bool.
    """

    guidance: float | None = None
    stop: bool = False

    def __post_init__(self) -> None:
        if self.guidance is not None:
            check("guidance", self.guidance, GUIDANCE)
        if not isinstance(self.stop, bool):
            raise TypeError(f"stop must be True or False, got {self.stop!r:.80}")


OnStep = Callable[[Record], Steer | None]
"""Called after every step with its record; None goes on as planned."""


class Steered:
    """A user's `on_step` as the loop takes it: it returns the steps to come where they change.

    Args:
        guided: whether the run has the unconditional branch.
        replanned: the whole schedule at another guidance.

    Attributes:
        ran: the steps so far, as they ran.
    """

    def __init__(self, on_step: OnStep, *, guided: bool, replanned: Callable[[float], Schedule]) -> None:
        self.ran: list[Step] = []
        self._on_step, self._guided, self._replanned = on_step, guided, replanned

    def __call__(self, record: Record) -> Schedule | None:
        """Errors: TypeError for anything but a Steer or None; ValueError for guidance that cannot start."""
        self.ran.append(record.step)
        steer = self._on_step(record)
        if steer is None:
            return None
        if not isinstance(steer, Steer):
            raise TypeError(f"on_step must return None or a Steer, got {steer!r:.80}")
        if steer.stop:
            return []
        if steer.guidance is None:
            return None
        if steer.guidance != 1.0 and not self._guided:
            raise ValueError(
                f"guidance {steer.guidance:g} cannot start within a run that began at 1 (off), without the "
                "unconditional branch: begin with a guidance above 1"
            )
        return self._replanned(steer.guidance)[record.step.index + 1 :]
