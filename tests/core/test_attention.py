"""Attention: the plain form used for training on a CPU is the fused one."""

import pytest
import torch
import torch.nn.functional as F

from swiftmask.core.attention import attend


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_the_fused_ones(trained: bool, masked: bool) -> None:
    torch.manual_seed(0)
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


def test_training_on_a_cpu_is_not_fused() -> None:
    q = torch.randn(1, 1, 3, 2, requires_grad=True)
    assert "ScaledDotProduct" not in str(attend(q, q, q).grad_fn)
    assert "ScaledDotProduct" in str(F.scaled_dot_product_attention(q, q, q).grad_fn)


def test_dropout_leaves_out_and_scales_up() -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, 400, 4, requires_grad=True) for _ in range(2))
    ones = torch.ones(1, 1, 400, 1)
    assert attend(q, k, ones).std() < 1e-5
    dropped = attend(q, k, ones, dropout=0.5)
    assert dropped.std() > 0.01
    assert abs(dropped.mean() - 1) < 0.05
