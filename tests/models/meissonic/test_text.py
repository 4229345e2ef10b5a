"""Prompts and their embedding: what is refused, and what is encoded how often."""

import copy

import pytest
import torch

from swiftmask.models.meissonic import Meissonic, Prompt, with_negative
from swiftmask.models.meissonic.prompts import as_prompts
from swiftmask.models.meissonic.text import read_tokenizer


def test_a_negative_prompt_goes_to_every_prompt_or_each_has_its_own() -> None:
    red = Prompt("a red circle", aesthetic_score=5.0)
    assert [p.negative for p in with_negative([red, "a square"], "blurry")] == ["blurry", "blurry"]
    own = with_negative([red, "a square"], ["blurry", ""])
    assert (own[0].negative, own[0].aesthetic_score, own[1].negative) == ("blurry", 5.0, "")
    with pytest.raises(ValueError, match="one negative prompt for all, or one for each of 2 prompts, got 3"):
        with_negative(["a", "b"], ["c", "d", "e"])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (["a circle", ""], "prompt 2 of 2: empty prompt: say what to generate"),
        ([" \n"], "prompt 1 of 1: empty prompt"),
        (["a circle", 3], "prompt 2 of 2: expected a prompt as text, got 3"),
        ("a circle", r"expected a list of prompts, got one string: write \['a circle'\]"),
    ],
)
def test_what_is_no_prompt(model: Meissonic, what, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(what)
    with pytest.raises(ValueError, match="expected a prompt as text, got None"):
        Prompt("a circle", negative=None)  # type: ignore[arg-type]


def test_prompts_longer_than_the_encoder_reads(model: Meissonic) -> None:
    assert model.text_encoder.tokenizer(["a small red circle left a"]).shape == (1, 8)
    with pytest.raises(ValueError, match=r"prompt of 9 tokens, expected at most 8 .* shorten 'a small red"):
        model.encode(["a circle", "a small red circle left a square"])
    with pytest.raises(ValueError, match="prompt of 9 tokens"):
        model.encode([Prompt("a circle", negative="a a a a a a a")])


def test_words_outside_the_list(model: Meissonic) -> None:
    with pytest.raises(ValueError, match="unknown word 'Zebra' in 'a red Zebra'"):
        model.encode(["a circle", "a red Zebra"])


def test_ids_are_start_words_end_and_padding(model: Meissonic) -> None:
    assert model.text_encoder.tokenizer(["A large square", ""]).tolist() == [
        [1, 3, 5, 9, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_micro_conditions_in_the_order_of_the_reference() -> None:
    prompt = Prompt("a", original_size=(600, 800), crop=(10, 20), aesthetic_score=5.5)
    assert prompt.micro((1024, 512)) == [800, 600, 10, 20, 5.5]
    assert Prompt("a").micro((1024, 512)) == [512, 1024, 0, 0, 6]


def test_the_state_before_the_last_layer_and_the_projected_end(model: Meissonic) -> None:
    ids_XT = model.text_encoder.tokenizer(["a red circle", "a square"])
    clip = model.text_encoder.clip
    embedded = model.text_encoder(ids_XT)
    last_XTC = clip.text_model.encoder.layers[-1](embedded.states_XTC, _causal(8))
    normed_XTC = clip.text_model.final_layer_norm(last_XTC)
    end_XC = normed_XTC[torch.arange(2), torch.tensor([4, 3])]
    torch.testing.assert_close(clip.text_projection(end_XC), embedded.pooled_XD)


def _causal(length: int) -> torch.Tensor:
    return torch.full((length, length), float("-inf")).triu(1)[None, None]


def test_copies_share_the_tokenizer(model: Meissonic) -> None:
    assert copy.deepcopy(model.text_encoder).tokenizer is model.text_encoder.tokenizer


def test_tokenizer_files(model: Meissonic, tmp_path) -> None:
    tokenizer = model.text_encoder.tokenizer
    tokenizer.save(tmp_path / "a")
    again = read_tokenizer(tmp_path / "a", length=8)
    assert torch.equal(again(["a red circle"]), tokenizer(["a red circle"]))
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*: expected tokenizer\.json, or vocab"):
        read_tokenizer(tmp_path, length=8)
    (tmp_path / "a" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer in .* is damaged .*: copy it again"):
        read_tokenizer(tmp_path / "a", length=8)


def test_every_text_is_encoded_once(model: Meissonic) -> None:
    rows: list[int] = []
    hook = model.text_encoder.register_forward_hook(
        lambda module, inputs, output: rows.append(len(inputs[0]))
    )
    try:
        condition = model.encode([Prompt("a circle", negative="red"), "a circle", "a square", "a circle"])
        model.with_null(condition)
    finally:
        hook.remove()
    assert rows == [4], "two prompts, the negative one and the empty one"
    assert as_prompts([Prompt("a circle")]) == [Prompt("a circle")]
    first, second, third, last = condition.rows.text_XTD
    assert torch.equal(first, second)
    assert torch.equal(second, last)
    assert not torch.equal(second, third)
