"""Attention: whatever kernel runs, the values are those of the fused one."""

import pytest
import torch
import torch.nn.functional as F

from swiftmask.core import attention
from swiftmask.core.attention import attend, attend_in_blocks, attend_padded, padding_on_host


def processor_with(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    monkeypatch.setattr(attention, "_has", lambda wanted: wanted in instructions)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_the_fused_ones(
    trained: bool, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor_with(monkeypatch, "avx512_f")
    q, k, v = (torch.randn(2, 3, 7, 4, requires_grad=trained) for _ in range(3))
    mask_B11S = (torch.arange(7) < torch.tensor([[7], [3]]))[:, None, None] if masked else None
    ours = attend(q, k, v, mask_B11S=mask_B11S)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S)
    torch.testing.assert_close(ours, fused)
    if trained:
        upstream = torch.randn_like(ours)
        for mine, theirs in zip(
            torch.autograd.grad(ours, (q, k, v), upstream),
            torch.autograd.grad(fused, (q, k, v), upstream),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


def test_training_is_not_fused_where_plain_matmuls_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 3, 2, requires_grad=True)
    processor_with(monkeypatch, "avx512_f")
    assert "ScaledDotProduct" not in str(attend(q, q, q).grad_fn)
    processor_with(monkeypatch)
    assert "ScaledDotProduct" in str(attend(q, q, q).grad_fn)


@pytest.mark.parametrize("scores_at_once", [1, 100, 2 * 37 * 41, 10**6])
@pytest.mark.parametrize("masked", ["no", "keys", "keys of one image, none of the other's", "one for all"])
def test_blocks_are_the_fused_ones(scores_at_once: int, masked: str) -> None:
    shapes = [(2, 3, 37, 8), (2, 3, 41, 8), (2, 3, 41, 6)]
    q, k, v = (torch.randn(B, T, heads, H).transpose(1, 2) for B, heads, T, H in shapes)
    counts = {"keys": [[41], [5]], "keys of one image, none of the other's": [[7], [0]], "one for all": [[9]]}
    count_B1 = torch.tensor(counts.get(masked, [[41]]))
    mask_B11S = None if masked == "no" else (torch.arange(41) < count_B1)[:, None, None]
    ours = attend_in_blocks(q, k, v, mask_B11S=mask_B11S, scores_at_once=scores_at_once)
    assert ours.isfinite().all()
    counted = (count_B1.flatten() > 0).expand(2)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S)
    torch.testing.assert_close(ours[counted], fused[counted])
    assert ours.transpose(1, 2).is_contiguous(), "the output projection reads it without a copy"


def test_in_bfloat16_blocks_are_near_the_fused_ones() -> None:
    """Scores are rounded, which the fused kernel does not do."""
    q, k, v = torch.randn(3, 1, 2, 256, 48).unbind()
    exact = F.scaled_dot_product_attention(q.bfloat16().float(), k.bfloat16().float(), v.bfloat16().float())

    def error(out: torch.Tensor) -> float:
        return float((out.float() - exact).norm() / exact.norm())

    halves = q.bfloat16(), k.bfloat16(), v.bfloat16()
    assert error(attend_in_blocks(*halves)) < min(0.006, 3 * error(F.scaled_dot_product_attention(*halves)))


@pytest.mark.parametrize(
    ("dtype", "num_rows", "instructions", "in_blocks"),
    [
        (torch.bfloat16, 1025, ("avx512_f", "avx512_bf16"), True),
        (torch.bfloat16, 1025, ("avx512_f",), False),
        (torch.bfloat16, 1025, ("avx512_f", "avx512_bf16", "amx_bf16"), False),
        (torch.bfloat16, 320, ("avx512_f", "avx512_bf16"), False),
        (torch.float32, 1025, ("avx512_f", "avx512_bf16"), False),
    ],
)
def test_blocks_run_only_where_they_were_measured_to_be_faster(
    dtype: torch.dtype,
    num_rows: int,
    instructions: tuple[str, ...],
    in_blocks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor_with(monkeypatch, *instructions)
    monkeypatch.setattr(attention, "attend_in_blocks", lambda *heads, mask_B11S: "blocks")
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *heads, attn_mask, dropout_p: "fused")
    q = torch.zeros(1, 1, num_rows, 1, dtype=dtype)
    with torch.no_grad():
        assert attend(q, q, q) == ("blocks" if in_blocks else "fused")
        on_meta = q.to("meta")
        assert attend(on_meta, on_meta, on_meta) == "fused"
    assert attend(q, q, q) == "fused", "gradients are followed"


def test_dropout_leaves_out_and_scales_up(monkeypatch: pytest.MonkeyPatch) -> None:
    processor_with(monkeypatch, "avx512_f")
    q, k = (torch.randn(1, 1, 400, 4, requires_grad=True) for _ in range(2))
    ones = torch.ones(1, 1, 400, 1)
    assert attend(q, k, ones).std() < 1e-5
    dropped = attend(q, k, ones, dropout=0.5)
    assert dropped.std() > 0.01
    assert abs(dropped.mean() - 1) < 0.05


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "padding", [[0, 0, 2, 2], [3, 3, 0, 0], [1, 0, 1, 4], [2, 2, 2, 2], [0, 0, 0, 0], []]
)
def test_padded_attention_is_the_masked_one(padding: list[int], trained: bool) -> None:
    q, k, v = (torch.randn(4, 3, n, 8, requires_grad=trained) for n in (5, 7, 7))
    first_B111 = torch.tensor(padding or [0] * 4)[:, None, None, None]
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.arange(7) >= first_B111)
    torch.testing.assert_close(attend_padded(q, k, v, padding_on_host(padding)), masked)


@pytest.mark.parametrize("padding", [[0, 3, 3], [0, 0, 0], [7, 1, 0]])
def test_compiled_padded_attention_is_the_eager_one(padding: list[int]) -> None:
    q, k, v = (torch.randn(3, 2, n, 4) for n in (5, 7, 7))
    padding_B = torch.tensor(padding)
    fast = torch.compile(attend_padded, backend="aot_eager", dynamic=True, fullgraph=True)
    torch.testing.assert_close(fast(q, k, v, padding_B), attend_padded(q, k, v, padding_B))
    torch.library.opcheck(torch.ops.swiftmask.attend_padded.default, (q, k, v, padding_B))


def test_a_row_of_padding_alone_is_finite() -> None:
    q, k, v = (torch.randn(2, 1, 3, 4) for _ in range(3))
    assert attend_padded(q, k, v, torch.tensor([3, 0])).isfinite().all()
