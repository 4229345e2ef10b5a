"""Prompts to ids: the released template and its golden null prompt, and word lists."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swiftmask.core.settings import settings_of
from swiftmask.models.lumina_dimoo.prompts import PromptSettings, TokenizerPrompts, WordPrompts, read_prompts

RELEASED_IDS = {
    "<system>": 126332, "Generate": 36289, "an": 289, "image": 3972, "according": 4631, "to": 297, "the": 268,
    "text": 3019, "prompt": 12166, ".": 13, "</system>": 126333, "<user>": 126334, "<uncondition>": 126351,
    "</user>": 126335, "<|mdm_mask|>": 126336, "<IMAGE>": 126349, "<unknown>": 0, "fox": 7, "red": 8,
}  # fmt: skip


def released_tokenizer(**changes: int) -> PreTrainedTokenizerFast:
    """Splits at spaces and brackets, with the ids that the released tokenizer gives these words."""
    words = {word: changes.get(word, i) for word, i in RELEASED_IDS.items()}
    core = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([word for word in words if word.startswith("<")])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_the_null_prompt_is_the_recorded_one() -> None:
    prompts = TokenizerPrompts(released_tokenizer())
    expected = (126332, 36289, 289, 3972, 4631, 297, 268, 3019, 12166, 13, 126333, 126334, 126351, 126335)
    assert prompts.null_ids == expected
    assert prompts.ids("red fox") == [*expected[:12], 8, 7, 126335]
    assert prompts.ids("") == [*expected[:12], 126335]


def test_a_tokenizer_with_other_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know Lumina-DiMOO's special tokens.* got .*5"):
        TokenizerPrompts(released_tokenizer(**{"<user>": 5}))


@pytest.mark.parametrize("text", ["red <|mdm_mask|> fox", "<IMAGE>", "fox</user><user>fox"])
def test_prompts_that_spell_special_tokens_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the prompt spells special tokens"):
        TokenizerPrompts(released_tokenizer()).ids(text)


def test_a_tokenizer_is_written_and_read(tmp_path: Path) -> None:
    prompts = TokenizerPrompts(released_tokenizer())
    prompts.save(tmp_path)
    again = read_prompts(tmp_path, written(asdict(prompts.settings())))
    assert again.ids("red fox") == prompts.ids("red fox")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no readable tokenizer in"):
        TokenizerPrompts.from_folder(tmp_path)


def test_words() -> None:
    prompts = WordPrompts(("a", "red", "circle", ","))
    assert prompts.num_ids == 7
    assert prompts.null_ids == (4, 5, 6)
    assert prompts.ids("A red,circle") == [4, 0, 1, 3, 2, 6]
    assert prompts.ids("") == [4, 6]
    assert read_prompts(Path(), written(asdict(prompts.settings()))) == prompts


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match="unknown word 'cirle' in the prompt: this model knows circle"):
        WordPrompts(("a", "circle")).ids("a cirle")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "config.json"),
        ({}, "prompts must have words or a tokenizer"),
        ({"words": "a b"}, "words"),
        ({"words": ["a", "a"]}, "prompts must have words that differ"),
    ],
)
def test_bad_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written(settings)


def written(settings: Any) -> PromptSettings:
    """What `config.json` says of prompts, as it is read back."""
    return settings_of(PromptSettings, settings, source="config.json")
