"""The GPU that is rehearsed on, as a fixture."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, PartialState

from tests.rehearsal.gpu import DEVICE, Rehearsal


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """A rehearsal that is going on, in which accelerate finds the device."""
    PartialState(cpu=True)
    for state in (PartialState, AcceleratorState):
        if state._shared_state:
            monkeypatch.setitem(state._shared_state, "device", DEVICE)
    with Rehearsal() as rehearsal:
        yield rehearsal
