"""Captions of Scenes: a small grammar, written from scenes and read back into facts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from swiftmask.data.scenes.facts import Facts, concat_facts
from swiftmask.data.scenes.world import (
    COLOURS,
    MAX_OBJECTS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    relation,
)

GRAMMAR = f"""\
caption    = object [relation object | "and" object | "," object "and" object] [background]
background = "on a" [pattern] [colour] "background"
object     = "a" [size] [colour] shape
shape      = {" | ".join(SHAPES)}
colour     = {" | ".join(COLOURS)}
size       = {" | ".join(SIZES)}
relation   = {" | ".join(RELATIONS)}
pattern    = {" | ".join(PATTERNS)}"""

_JOINED = {name: name.replace(" ", "_") for name in RELATIONS}
_RELATION_WORDS = tuple(_JOINED.values())
_WORDS = {*SHAPES, *COLOURS, *SIZES, *PATTERNS, *_RELATION_WORDS, "a", "an", "and", ",", "on", "background"}


def captions(scenes: Scenes) -> list[str]:
    """The full caption of each scene."""
    relation_B = relation(
        scenes.x_BO[:, 1] - scenes.x_BO[:, 0], scenes.y_BO[:, 1] - scenes.y_BO[:, 0]
    ).tolist()
    columns = (scenes.count_B, scenes.size_BO, scenes.colour_BO, scenes.shape_BO)
    backgrounds = zip(scenes.pattern_B.tolist(), scenes.background_B.tolist(), strict=True)
    texts = []
    for count, sizes, colours, shapes in zip(*(column.tolist() for column in columns), strict=True):
        pattern, background = next(backgrounds)
        objects = [f"a {SIZES[sizes[o]]} {COLOURS[colours[o]]} {SHAPES[shapes[o]]}" for o in range(count)]
        joint = RELATIONS[relation_B[len(texts)]]
        texts.append(f"{_join(objects, joint)} on a {PATTERNS[pattern]} {COLOURS[background]} background")
    return texts


def parse_caption(text: str) -> Facts:
    """The facts that one caption states (a batch of one).

    Errors: ValueError naming the first word that does not fit, and the grammar.
    """
    words = re.findall(r"\w+|[^\w\s]", _join_relations(text.lower().strip().rstrip(".")))
    for word in words:
        if word not in _WORDS:
            raise ValueError(_complaint(text, f"unknown word {word.replace('_', ' ')!r}"))
    return _Parser(text, words).parse()


def parse_captions(texts: Sequence[str]) -> Facts:
    """The facts of several captions, as one batch."""
    return concat_facts([parse_caption(text) for text in texts])


def _join(objects: list[str], joint: str) -> str:
    if len(objects) == 1:
        return objects[0]
    if len(objects) == 2:
        return f"{objects[0]} {joint} {objects[1]}"
    return f"{', '.join(objects[:-1])} and {objects[-1]}"


def _join_relations(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for name, joined in _JOINED.items():
        text = re.sub(rf"\b{name}\b", joined, text)
    return text


def _complaint(text: str, problem: str) -> str:
    return f"{problem} in the caption {text!r}; the grammar is:\n{GRAMMAR}"


class _Parser:
    """Reads words from the left; one instance per caption."""

    def __init__(self, text: str, words: list[str]) -> None:
        self._text = text
        self._words = words
        self._at = 0

    def parse(self) -> Facts:
        objects = [self._object()]
        relation_index = self._take(_RELATION_WORDS)
        if relation_index >= 0:
            objects.append(self._object())
        elif self._peek() in (",", "and"):
            objects += self._list()
        pattern, background = self._background()
        if self._at < len(self._words):
            raise self._unexpected("the end")
        return _facts(objects, relation_index, pattern, background)

    def _list(self) -> list[tuple[int, int, int]]:
        objects = []
        while self._take((",",)) >= 0:
            if self._peek() == "and":
                break
            objects.append(self._object())
        self._expect(("and",))
        objects.append(self._object())
        if len(objects) >= MAX_OBJECTS:
            raise ValueError(_complaint(self._text, f"{1 + len(objects)} objects (at most {MAX_OBJECTS})"))
        return objects

    def _object(self) -> tuple[int, int, int]:
        self._expect(("a", "an"))
        size, colour = self._take(SIZES), self._take(COLOURS)
        return self._expect(SHAPES), colour, size

    def _background(self) -> tuple[int, int]:
        if self._take(("on",)) < 0:
            return -1, -1
        self._expect(("a", "an"))
        pattern, colour = self._take(PATTERNS), self._take(COLOURS)
        self._expect(("background",))
        return pattern, colour

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else "the end"

    def _take(self, words: Sequence[str]) -> int:
        """Index of the next word in `words`, which is then read; -1 and nothing read if it is not there."""
        if self._peek() not in words:
            return -1
        self._at += 1
        return words.index(self._words[self._at - 1])

    def _expect(self, words: Sequence[str]) -> int:
        index = self._take(words)
        if index < 0:
            raise self._unexpected(" or ".join(words))
        return index

    def _unexpected(self, expected: str) -> ValueError:
        found = self._peek().replace("_", " ")
        return ValueError(_complaint(self._text, f"expected {expected}, found {found!r}"))


def _facts(objects: list[tuple[int, int, int]], relation_index: int, pattern: int, background: int) -> Facts:
    padded = objects + [(-1, -1, -1)] * (MAX_OBJECTS - len(objects))
    shape, colour, size = zip(*padded, strict=True)
    return Facts(
        count_B=torch.tensor([len(objects)]),
        shape_BO=torch.tensor([shape]),
        colour_BO=torch.tensor([colour]),
        size_BO=torch.tensor([size]),
        relation_B=torch.tensor([relation_index]),
        pattern_B=torch.tensor([pattern]),
        background_B=torch.tensor([background]),
    )
