"""The golden model under a short name, and the released folder layout around it."""

from pathlib import Path

import pytest

from swiftmask.models.meissonic import Meissonic
from tests.released_layouts import write_meissonic


@pytest.fixture
def model(golden_meissonic: Meissonic) -> Meissonic:
    return golden_meissonic


@pytest.fixture
def released(tmp_path: Path, golden_meissonic: Meissonic) -> Path:
    """A folder laid out as upstream's."""
    return write_meissonic(tmp_path / "released", golden_meissonic)
