"""The GPU that is rehearsed on, as a fixture."""

from collections.abc import Iterator

import pytest
from fake_gpu import Rehearsal, found_by_accelerate


@pytest.fixture
def gpu() -> Iterator[Rehearsal]:
    """A rehearsal that is going on, in which accelerate finds the device."""
    with found_by_accelerate(), Rehearsal() as rehearsal:
        yield rehearsal
