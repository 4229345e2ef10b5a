"""Sequences: where prompts, images, newlines and padding stand."""

import pytest
import torch

from swiftmask.models.lumina_dimoo.layout import Layout, PromptCondition, Vocabulary, grid_of

WORDS = Vocabulary(
    mask=90,
    newline=60,
    image_start=61,
    image_end=62,
    answer_start=63,
    answer_end=88,
    first_code=64,
    codebook_size=24,
)
LAYOUT = Layout(WORDS, (2, 3))


def test_a_sequence() -> None:
    codes_1L = torch.arange(6)[None]
    masked_1L = torch.tensor([[False, True, False, False, False, True]])
    ids_1T = LAYOUT.sequence(torch.tensor([[5, 6]]), codes_1L, masked_1L)
    assert ids_1T.tolist() == [[5, 6, 63, 61, 64, 90, 66, 60, 67, 68, 90, 60, 62, 88]]
    assert LAYOUT.num_image_rows == 2 * 3 + 2 + 4
    both_2T = LAYOUT.sequence(torch.tensor([[5, 6], [7, 8]]), codes_1L, masked_1L)
    assert torch.equal(both_2T[:, 2:], ids_1T[:, 2:].expand(2, -1))


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (4, 4), (1, 5)])
def test_columns_find_the_codes_again(grid: tuple[int, int]) -> None:
    layout = Layout(WORDS, grid)
    codes_1L = torch.arange(grid[0] * grid[1])[None]
    ids_1T = layout.sequence(
        torch.tensor([[5, 6, 7]]), codes_1L, torch.zeros_like(codes_1L, dtype=torch.bool)
    )
    columns_1L = layout.columns(codes_1L, ids_1T.shape[1])
    assert torch.equal(ids_1T.gather(1, columns_1L), codes_1L + 64)


def test_the_released_image_has_4164_columns() -> None:
    assert Layout(Vocabulary(), grid_of(1024, 1024, 16)).num_image_rows == 4164
    assert Vocabulary().size == 134548


def test_prompts_are_padded_on_the_left() -> None:
    condition = PromptCondition.of([[5, 6, 7], [8]], [1, 2], "cpu")
    assert condition.prompts_XP.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert condition.places(5).tolist() == [[0, 1, 2, 3, 4], [-2, -1, 0, 1, 2]]
    assert (len(condition), condition.padding, condition.num_branches) == (2, (0, 2), 1)


@pytest.mark.parametrize("null", [[1], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_null_prompts_stand_below(null: list[int]) -> None:
    guided = PromptCondition.of([[5, 6, 7], [8]], null, "cpu").with_null()
    assert (len(guided), guided.num_branches) == (2, 2)
    assert guided.lengths == (3, 1, len(null), len(null))
    rows = zip(guided.prompts_XP.tolist(), guided.places(guided.prompts_XP.shape[1]).tolist(), strict=True)
    found = [[i for i, place in zip(ids, places, strict=True) if place >= 0] for ids, places in rows]
    assert found == [[5, 6, 7], [8], null, null]


def test_equal_lengths_have_no_padding() -> None:
    guided = PromptCondition.of([[5, 6], [8, 9]], [1, 2], "cpu").with_null()
    assert guided.padding == (0, 0, 0, 0)
    longer = PromptCondition.of([[5], [8]], [1, 2], "cpu").with_null()
    assert longer.padding == (1, 1, 0, 0)
    assert longer.pad_X.tolist() == [1, 1, 0, 0]


def test_no_prompts() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptCondition.of([], [1], "cpu")


@pytest.mark.parametrize(
    ("size", "near"), [((512, 520), "512x512"), ((1000, 1024), "992x1024"), ((8, 16), "16x16")]
)
def test_sizes_not_divisible_by_16_are_refused(size: tuple[int, int], near: str) -> None:
    with pytest.raises(ValueError, match=f"multiples of 16, got {size[0]}x{size[1]}: take {near}"):
        grid_of(*size, 16)
