"""Tokens revealed per step under every curve, and the placement of full steps."""

from swiftmask.core.schedule import (
    arccos,
    cosine,
    linear,
    root,
    square,
    uniform_full_steps,
    valeo_reveal_counts,
)
from verify.cases import Case, Check, exactly

CURVES = {"arccos": arccos, "cosine": cosine, "linear": linear, "root": root, "square": square}


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
