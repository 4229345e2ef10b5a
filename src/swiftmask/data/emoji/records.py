"""What is said of an Emoji image: captions, split, licence. Everything follows from the concept's name, so
that it never changes when images are added.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

STYLES = ("noto", "twemoji", "fluent", "flat")
"""Noto, Twemoji, Fluent (3-D shading) and Fluent flat."""

LICENCES = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "fluent": "MIT", "flat": "MIT"}

HELD_OUT_ONE_IN = 10
"""One style of every tenth concept is held out: the concept and the style are known, the pair is not."""

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmojiRecord:
    """One line of `metadata.jsonl`, in the layout of Hugging Face's imagefolder.

    Attributes:
        file_name: of the image, below the folder.
        caption: "red apple, flat style".
        captions: other ways to ask for it, keywords among them.
        concept: "red apple".
        style: one of `STYLES`.
        group: Unicode's group of the concept, such as "Food & Drink".
        split: "train" or "held-out".
        licence: of the image, an SPDX name.
    """

    file_name: str
    caption: str
    captions: tuple[str, ...]
    concept: str
    style: str
    group: str
    split: str
    licence: str

    @classmethod
    def of(cls, key: str, style: str, group: str, keywords: Sequence[str]) -> "EmojiRecord":
        """The record of a concept in a style.

        Args:
            key: name of the concept in the packages, "red-apple".
        """
        name = key.replace("-", " ")
        return cls(
            file_name=f"{style}/{key}.png",
            caption=f"{name}, {style} style",
            captions=_captions(name, style, keywords),
            concept=name,
            style=style,
            group=group,
            split="held-out" if style == held_out_style(key) else "train",
            licence=LICENCES[style],
        )

    def line(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self)


def held_out_style(key: str) -> str | None:
    """The style in which a concept is not trained on, or None for nine concepts of ten."""
    number = _number(key)
    return STYLES[number // HELD_OUT_ONE_IN % len(STYLES)] if number % HELD_OUT_ONE_IN == 0 else None


@dataclass(frozen=True, kw_only=True)
class EmojiPrompt:
    """One line of a prompt file: what is asked, and what a reader is to find in the image."""

    prompt: str
    concept: str
    style: str

    @classmethod
    def of(cls, record: EmojiRecord) -> "EmojiPrompt":
        """The caption of an image."""
        return cls(prompt=record.caption, concept=record.concept, style=record.style)


def held_out_prompts(records: Sequence[EmojiRecord]) -> list[EmojiPrompt]:
    """The captions of the held-out pairs."""
    return [EmojiPrompt.of(record) for record in records if record.split == "held-out"]


def trained_prompts(records: Sequence[EmojiRecord], count: int = 200) -> list[EmojiPrompt]:
    """Captions of pairs that are trained on, the first `count` in an order fixed by a hash."""
    trained = [EmojiPrompt.of(record) for record in records if record.split == "train"]
    return sorted(trained, key=lambda each: _number(each.prompt))[:count]


def free_prompts(records: Sequence[EmojiRecord], count: int = 200) -> list[EmojiPrompt]:
    """Prompts that no image shows: concepts in a colour that their name does not state.

    They are the first `count` of all such prompts in an order fixed by a hash.
    """
    plain = {(r.concept, r.style) for r in records if not any(c in r.concept.split() for c in _COLOURS)}
    prompts = [
        EmojiPrompt(prompt=f"{colour} {concept}, {style} style", concept=concept, style=style)
        for (concept, style), colour in product(sorted(plain), _COLOURS)
    ]
    return sorted(prompts, key=lambda each: _number(each.prompt))[:count]


def _captions(name: str, style: str, keywords: Sequence[str]) -> tuple[str, ...]:
    article = "an" if name[0] in "aeiou" else "a"
    templates = [f"a {style} emoji of {name}", f"{article} {name} in {style} style", f"{style} {name}"]
    others = [word for word in keywords if word not in name.split() and word != name][:4]
    return (*templates, *(f"{name}, {word}, {style} style" for word in others))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
