"""Prompts to token ids: the released model's template and tokenizer, and word lists for small models.

The released template is `<system>...</system><user>PROMPT</user>`; the null branch has `<uncondition>` for a
prompt. Upstream's data preparation misspells its system prompt ("accroding"); its samplers do not, and
nor do we.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from swiftmask.core.optional import library
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import first_line

_SYSTEM = "<system>Generate an image according to the text prompt.</system>"
_TEMPLATE = _SYSTEM + "<user>{}</user>"
_NULL = "<uncondition>"
_RELEASED_NULL_IDS = (
    126332, 36289, 289, 3972, 4631, 297, 268, 3019, 12166, 13, 126333, 126334, 126351, 126335,
)  # fmt: skip
_FIRST_SPECIAL = 126081
"""In the released vocabulary text comes before this id, special tokens and codes from there on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """Prompts of a model folder: a list of words, or the name of the folder of a tokenizer."""

    words: tuple[str, ...] | None = None
    tokenizer: Literal["tokenizer"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.words is None) == (self.tokenizer is None):
            raise ValueError("prompts must have words or a tokenizer, and not both")
        if self.words is not None and (not self.words or len({*self.words}) < len(self.words)):
            raise ValueError("prompts must have words that differ")


class Prompts(Protocol):
    """Turns prompts into ids. Immutable, and knows how to be written."""

    @property
    def null_ids(self) -> tuple[int, ...]:
        """The prompt of the null branch."""
        ...

    def ids(self, text: str) -> list[int]:
        """The whole prompt, template and all. Errors: ValueError for a text that cannot be one."""
        ...

    def settings(self) -> PromptSettings:
        """What `config.json` says of it."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `settings` alone cannot hold."""
        ...


@dataclass(frozen=True, slots=True)
class WordPrompts:
    """For models of few words: word i has id i, and three specials follow the last word.

    Attributes:
        words: lower case, without spaces.
    """

    words: tuple[str, ...]
    _place: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", {word: place for place, word in enumerate(self.words)})

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Those of all words in some texts."""
        return cls(tuple(sorted({word for text in texts for word in _split(text)})))

    @property
    def num_ids(self) -> int:
        """Ids 0 .. num_ids - 1 are taken by words and specials."""
        return len(self.words) + 3

    @property
    def null_ids(self) -> tuple[int, ...]:
        start, null, end = range(len(self.words), self.num_ids)
        return start, null, end

    def ids(self, text: str) -> list[int]:
        """Errors: ValueError naming the first unknown word and its neighbours."""
        start, _, end = self.null_ids
        return [start, *(self._id(word) for word in _split(text)), end]

    def _id(self, word: str) -> int:
        if word not in self._place:
            near = difflib.get_close_matches(word, self.words, n=3) or list(self.words)
            raise ValueError(f"unknown word {word!r} in the prompt: this model knows {', '.join(near)}")
        return self._place[word]

    def settings(self) -> PromptSettings:
        return PromptSettings(words=self.words)

    def save(self, folder: Path) -> None:
        """Nothing: the words are in `config.json`."""


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


class TokenizerPrompts:
    """The released tokenizer (transformers) with the released template.

    Args:
        tokenizer: of transformers; it is never changed.
        null_ids: what the null prompt must come out as.

    Errors: ValueError if the tokenizer does not know the special tokens.
    """

    def __init__(self, tokenizer: Any, null_ids: Sequence[int] = _RELEASED_NULL_IDS) -> None:
        self._tokenizer = tokenizer
        found = self._ids(_NULL)
        if tuple(found) != tuple(null_ids):
            raise ValueError(
                f"this tokenizer does not know Lumina-DiMOO's special tokens: {_TEMPLATE.format(_NULL)!r} "
                f"must become {list(null_ids)}, got {found[:20]}: take the tokenizer files beside the "
                "released weights"
            )
        self._null_ids = tuple(null_ids)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """From the released folder, without running code that lies in it."""
        transformers = library("transformers", "the tokenizer of Lumina-DiMOO")
        try:
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises Exception itself
            raise ValueError(
                f"no readable tokenizer in {folder} ({type(error).__name__}: {first_line(error)}): expected "
                "tokenizer.json and tokenizer_config.json of Lumina-DiMOO"
            ) from error
        return cls(tokenizer)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    @property
    def null_ids(self) -> tuple[int, ...]:
        return self._null_ids

    def ids(self, text: str) -> list[int]:
        """Errors: ValueError for a prompt that spells special tokens, such as an image's."""
        found = self._ids(text)
        num_before = len(self._null_ids) - 2
        special = [i for i in found[num_before:-1] if i >= _FIRST_SPECIAL]
        if special:
            names = self._tokenizer.convert_ids_to_tokens(special[:3])
            raise ValueError(f"the prompt spells special tokens ({', '.join(names)}): leave them out")
        return found

    def settings(self) -> PromptSettings:
        return PromptSettings(tokenizer="tokenizer")

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder / "tokenizer")

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(_TEMPLATE.format(text))["input_ids"])


def read_prompts(folder: Path, settings: PromptSettings) -> Prompts:
    """From what `Prompts.settings` wrote."""
    if settings.words is not None:
        return WordPrompts(settings.words)
    return TokenizerPrompts.from_folder(folder / str(settings.tokenizer))
