"""What a click asks for: the knobs of the page as two requests with the same seeds, and what they will cost.

Nothing here knows gradio: the page hands over what was chosen, and shows what it is told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from swiftmask.serve.catalogue import Catalogue, Variant
from swiftmask.serve.requests import Asked, RequestLimits, read_fields

PRESET = "+preset:"
"""In the name of a variant that is a preset."""

SAMPLING = ("guidance", "temperature", "choice_temperature", "schedule_power")


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a person chose; None leaves a choice to the model.

    Attributes:
        what: prompt, or classes by name or number.
        negative_prompt: of a model that takes one.
        seed: first of `num_images`, the same for each class.
        variant: name of the accelerated model in the catalogue.
        steps, full_steps: of the accelerated model.
        baseline_steps: of the full model.
        size: "WIDTHxHEIGHT", for a model of several sizes.
        image, mask: what inpainting starts from; white is generated anew.
    """

    what: tuple[str, ...]
    negative_prompt: str = ""
    seed: int = 0
    num_images: int = 1
    variant: str
    steps: int | None = None
    full_steps: int | None = None
    baseline_steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    choice_temperature: float | None = None
    schedule_power: float | None = None
    size: str | None = None
    image: Image.Image | None = field(default=None, repr=False)
    mask: Image.Image | None = field(default=None, repr=False)

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling options that were chosen."""
        chosen = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in chosen.items() if value is not None}


def requests_of(knobs: Knobs, catalogue: Catalogue, limits: RequestLimits) -> tuple[Asked, Asked]:
    """The request to the full model, and the one to the accelerated model.

    Errors: RequestError, as the same request over HTTP.
    """
    common: dict[str, Any] = {"seed": knobs.seed, "n": knobs.num_images, "size": knobs.size, **knobs.sampling}
    common["negative_prompt"] = knobs.negative_prompt
    if catalogue.base.model.spec.draws == "class":
        common |= {"prompt": "", "labels": list(knobs.what)}
    else:
        common["prompt"] = " ".join(knobs.what)
    full = {**common, "model": catalogue.base.name, "steps": knobs.baseline_steps}
    fast = {**common, "model": knobs.variant, "steps": knobs.steps, "full_steps": knobs.full_steps}
    return tuple(  # type: ignore[return-value]
        replace(read_fields(fields, limits), image=knobs.image, mask=knobs.mask) for fields in (full, fast)
    )


def changed_knobs(knobs: Knobs, catalogue: Catalogue) -> Knobs:
    """The knobs with None where a number is what the model takes anyway."""
    own, base = catalogue.find(knobs.variant, None, None), catalogue.base
    default = {"steps": own.pipeline.steps, "full_steps": own_full_steps(own), "baseline_steps": base.steps}
    same_steps = knobs.steps in (None, own.pipeline.steps)
    for name, number in default.items():
        stays = getattr(knobs, name) == number and (name != "full_steps" or same_steps)
        if stays or (name == "full_steps" and own_full_steps(own) is None):
            knobs = replace(knobs, **{name: None})
    return knobs


def explicit_knobs(knobs: Knobs, catalogue: Catalogue) -> Knobs:
    """The knobs with the accelerated model's own steps where nobody chose; a preset keeps its own."""
    own = catalogue.find(knobs.variant, None, None)
    if PRESET in own.name:
        return knobs
    full_steps = own_full_steps(own) if knobs.steps is None else None
    return replace(knobs, steps=knobs.steps or own.pipeline.steps, full_steps=knobs.full_steps or full_steps)


def own_full_steps(variant: Variant) -> int | None:
    """How many steps of a variant are full by default; None where every step is."""
    if variant.pipeline.features_fn is None:
        return None
    return sum(step.full for step in variant.pipeline.schedule())


def short_name(variant: str, base: str) -> str:
    """A variant's name without its base's."""
    return variant.removeprefix(f"{base}+") or variant


@dataclass(slots=True)
class Estimates:
    """Seconds an operation takes, by variant: as last seen here, or the full model's when the server started.

    Attributes:
        pace: seconds of an image of so many operations, in a batch of so many images; None if unknown.
    """

    pace: Callable[[int, int], float] | None = None
    seen: dict[str, float] = field(default_factory=dict)

    def remember(self, variant: str, flops: int, seconds: float) -> None:
        """What an image of a variant took."""
        if flops > 0 and seconds > 0:
            self.seen[variant] = seconds / flops

    def seconds(self, variant: str, flops: int, num_images: int) -> float | None:
        """What an image of a variant may take; None if nobody knows."""
        if variant in self.seen:
            return flops * self.seen[variant]
        return None if self.pace is None else self.pace(flops, num_images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one of the two decodes will cost, or did.

    Attributes:
        full: which steps run the backbone.
        flops: operations of an image.
        seconds: of an image; None if unknown.
    """

    name: str
    full: Sequence[bool]
    flops: int
    seconds: float | None

    @property
    def steps_text(self) -> str:
        """How many steps there are, and how many of them are full."""
        return steps_text(self.full)


def steps_text(full: Sequence[bool]) -> str:
    """How many steps there are, and how many of them are full."""
    count = len(full)
    named = f"{count} step{'s' if count != 1 else ''}"
    return f"{named}, all full" if all(full) else f"{named}, {sum(full)} full"


def times_fewer(full: float, fast: float) -> str:
    """How many operations there are beside the full model's."""
    if not full or not fast:
        return ""
    ratio = full / fast
    if max(ratio, 1 / ratio) < 1.05:
        return "as many"
    return f"{ratio:.1f} times fewer" if ratio > 1 else f"{1 / ratio:.1f} times more"
