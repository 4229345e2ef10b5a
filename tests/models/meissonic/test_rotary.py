"""Rotary positions: what attention sees is how far apart two places are."""

import pytest
import torch

from swiftmask.models.meissonic.rotary import places_of, rotary_at

AXES = (4, 6, 6)


def test_places_are_text_then_rows_and_columns() -> None:
    assert places_of((2, 3), 2).tolist() == [
        [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2],
    ]  # fmt: skip


def test_scores_depend_on_the_way_from_one_place_to_the_other() -> None:
    q, k = torch.randn(2, 16)

    def score(at_q: tuple[int, int], at_k: tuple[int, int]) -> torch.Tensor:
        rotary = rotary_at(torch.tensor([[0, *at_q], [0, *at_k]]), AXES)
        turned = rotary.turn(torch.stack([q, k])[None, None])[0, 0]
        return turned[0] @ turned[1]

    torch.testing.assert_close(score((2, 5), (4, 1)), score((12, 25), (14, 21)))
    assert not torch.isclose(score((2, 5), (4, 1)), score((4, 1), (2, 5)))
    assert not torch.isclose(score((2, 5), (4, 1)), score((2, 5), (4, 2)))


def test_text_is_not_turned_and_half_precision_is_kept() -> None:
    rotary = rotary_at(places_of((2, 2), 3), AXES)
    x_BNTH = torch.randn(1, 2, 7, 16, dtype=torch.bfloat16)
    turned_BNTH = rotary.turn(x_BNTH)
    assert turned_BNTH.dtype == torch.bfloat16
    assert torch.equal(turned_BNTH[:, :, :3], x_BNTH[:, :, :3])
    assert not torch.equal(turned_BNTH[:, :, 4:], x_BNTH[:, :, 4:])
    assert rotary.cos_TP.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_numbers_have_the_bits_of_sines_and_cosines(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotary = rotary_at(places_of((4, 5), 3), AXES)
    x_BNTH = torch.randn(2, 23, 3, 16).to(dtype).transpose(1, 2)
    turned = rotary.turn(x_BNTH)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(turned, rotary.turn(x_BNTH))
