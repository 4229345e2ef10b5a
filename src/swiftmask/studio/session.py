"""What a click asks for: the knobs of the page as two requests with the same seeds."""

from dataclasses import dataclass
from typing import Any

from swiftmask.serve.catalogue import Catalogue
from swiftmask.serve.requests import Asked, RequestLimits, read_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a person chose.

    Attributes:
        what: prompt, or classes by name or number.
        seed: first of `num_images`, the same for each class.
        variant: name of the accelerated model in the catalogue.
        full_steps: of the accelerated model.
    """

    what: tuple[str, ...]
    seed: int = 0
    num_images: int = 1
    variant: str
    steps: int | None = None
    full_steps: int | None = None


def requests_of(knobs: Knobs, catalogue: Catalogue, limits: RequestLimits) -> tuple[Asked, Asked]:
    """The request to the full model, and the one to the accelerated model.

    Errors: RequestError, as the same request over HTTP.
    """
    common: dict[str, Any] = {"seed": knobs.seed, "n": knobs.num_images, "steps": knobs.steps}
    if catalogue.base.model.spec.draws == "class":
        common |= {"prompt": "", "labels": list(knobs.what)}
    else:
        common["prompt"] = " ".join(knobs.what)
    full = read_fields({**common, "model": catalogue.base.name}, limits)
    fast = read_fields({**common, "model": knobs.variant, "full_steps": knobs.full_steps}, limits)
    return full, fast
