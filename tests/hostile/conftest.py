"""How many cases the generated tests ran, said at the end: a generator that finds nothing would pass, too."""

from collections import Counter
from collections.abc import Callable

import pytest

_COUNTS: Counter[str] = Counter()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """`count(cases)` of the test's module."""
    return lambda cases: _COUNTS.update({request.path.stem: cases})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _COUNTS:
        said = ", ".join(f"{name} {cases}" for name, cases in sorted(_COUNTS.items()))
        terminalreporter.write_line(f"hostile cases: {said}")
