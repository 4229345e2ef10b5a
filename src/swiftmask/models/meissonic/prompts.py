"""What Meissonic is asked for: a text, what it should not show, and facts about the image.

A `Prompt` stands wherever a plain string may (`encode`, and so `generate(prompts=[...])`). Its facts are the
micro-conditions of SDXL (Podell et al., arXiv 2307.01952, section 2.2) with an aesthetic score beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

RELEASED_NEGATIVE = (
    "worst quality, low quality, low res, blurry, distortion, watermark, logo, signature, text, "
    "jpeg artifacts, signature, sketch, duplicate, ugly, identifying mark"
)
"""The negative prompt behind the released models' published images ("signature" is twice in it)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One image to generate. Errors: ValueError for an empty or foreign text.

    Attributes:
        text: what to generate.
        negative: what guidance leads away from; empty is "nothing in particular".
        original_size: height and width in pixels that the image is to look as if it came from; None is the
            size generated.
        crop: top and left of the cut it is to look like.
        aesthetic_score: how well it is to have been rated.
    """

    text: str
    negative: str = ""
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    aesthetic_score: float = 6.0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not isinstance(self.negative, str):
            wrong = self.negative if isinstance(self.text, str) else self.text
            raise ValueError(f"expected a prompt as text, got {wrong!r}")
        if not self.text.strip():
            raise ValueError("empty prompt: say what to generate")

    def micro(self, size: tuple[int, int]) -> list[float]:
        """Width, height, top, left and score, for an image of `size` (height, width)."""
        height, width = self.original_size or size
        return [float(width), float(height), *map(float, self.crop), float(self.aesthetic_score)]


def as_prompts(what: Sequence[str | int | Prompt]) -> list[Prompt]:
    """Errors: ValueError for one bare string, and naming which prompt is empty or no text."""
    if isinstance(what, str):
        raise ValueError(f"expected a list of prompts, got one string: write [{what!r}]")
    prompts = []
    for place, entry in enumerate(what):
        try:
            prompts.append(entry if isinstance(entry, Prompt) else Prompt(entry))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"prompt {place + 1} of {len(what)}: {error}") from error
    return prompts


def with_negative(prompts: Sequence[str | Prompt], negative: str | Sequence[str]) -> list[Prompt]:
    """The prompts with one negative prompt for all, or one for each.

    Errors: ValueError if there are neither one nor as many as prompts.
    """
    given = as_prompts(prompts)
    negatives = [negative] * len(given) if isinstance(negative, str) else list(negative)
    if len(negatives) != len(given):
        raise ValueError(
            f"expected one negative prompt for all, or one for each of {len(given)} prompts, "
            f"got {len(negatives)}"
        )
    return [replace(prompt, negative=text) for prompt, text in zip(given, negatives, strict=True)]
