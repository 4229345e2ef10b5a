"""The energy score of a student: a student that generates as its teacher does has the lowest."""

import copy

import pytest
import torch

from swiftmask.methods.marval import make_student
from swiftmask.methods.marval.held_out import HeldOutScore
from swiftmask.methods.marval.student import Student
from swiftmask.methods.marval.training import MaskLaw, mask_tokens
from swiftmask.models.mar import MAR


class Teachers(Student):
    """A student whose one call gives what the teacher's whole chain would, moved by `off`."""

    off = 0.0

    def tokens(self, features_GBTD, positions_BM, guidance):  # type: ignore[no-untyped-def]
        real = self.model.tokens(features_GBTD, positions_BM, guidance)
        sample, off = real.sample, self.off

        class Moved:
            def sample(self, noise, step):  # type: ignore[no-untyped-def]
                return sample(noise, step)[0] + off, None

        return Moved()

    def schedule(self, num_steps, *, num_masked, options):  # type: ignore[no-untyped-def]
        return self.model.schedule(num_steps, num_masked=num_masked, options=options)


@pytest.fixture
def canvas(golden_mar: MAR):
    generator = torch.Generator().manual_seed(1)
    return mask_tokens(torch.randn(8, 16, 4, generator=generator), MaskLaw(), generator)


def test_the_score_is_lowest_for_the_teachers_own_distribution(golden_mar: MAR, canvas) -> None:
    score = HeldOutScore(golden_mar, canvas, [0, 1, 2, 3, 4, 0, 1, 2], guidance=1.0)
    exact = Teachers(golden_mar, golden_mar.head_parameters())
    found = []  # untrained tokens are some 1e4 large
    for off in (0.0, 3e4, 1e5):
        exact.off = off
        found.append(score(exact))
    assert found == sorted(found)
    assert found[1] > 1.2 * found[0]
    untrained = make_student(copy.deepcopy(golden_mar), golden_mar.head_parameters())
    first, again = score(untrained), score(untrained)
    assert first == again
    assert first > 0


def test_the_teacher_is_guided(golden_mar: MAR, canvas) -> None:
    student = make_student(copy.deepcopy(golden_mar), golden_mar.head_parameters())
    unguided, guided = (
        HeldOutScore(golden_mar, canvas, [1] * 8, guidance)(student) for guidance in (1.0, 3.0)
    )
    assert unguided != guided
