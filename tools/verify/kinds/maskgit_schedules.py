"""Tokens revealed per step under every curve, and the placement of full steps."""

import math

from swiftmask.core.schedule import Curve, arccos, uniform_full_steps, valeo_reveal_counts
from verify.cases import Case, Check, exactly

CURVES: dict[str, Curve] = {
    "arccos": arccos,
    "cosine": lambda remaining: (remaining * math.pi / 2).cos(),
    "linear": lambda remaining: 1 - remaining,
    "root": lambda remaining: 1 - remaining**0.5,
    "square": lambda remaining: 1 - remaining**2,
}
"""Upstream's; the released models use the first."""


def check(case: Case) -> list[Check]:
    checks = []
    for name, counts in case.config.get("reveal_counts", {}).items():
        curve, num_steps = name.rsplit("_", 1)
        ours = valeo_reveal_counts(case.config["grid"] ** 2, int(num_steps), CURVES[curve])
        checks.append(exactly(f"reveal_counts {name}", ours, counts))
    for name, indices in case.config.get("full_steps", {}).items():
        num_steps, num_full = (int(part) for part in name.split("_"))
        checks.append(exactly(f"full_steps {name}", uniform_full_steps(num_steps, num_full), indices))
    return checks
