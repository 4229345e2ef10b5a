"""The clipped objective, the levels of its ratio, and the divergences with their gradients."""

import pytest
import torch
from torch import Tensor

from swiftmask.methods.speed_rl.objective import (
    KL_ESTIMATORS,
    clipped_surrogate,
    k3,
    per_sequence,
    per_token,
    soft_cross_entropy,
)

LOGITS_V = torch.tensor([0.1, 0.2, -0.3, 1.0])
REFERENCE_V = torch.tensor([0.0, 0.5, -0.5, 0.8])
EVERY_CODE_1N = torch.arange(4)[None]
K3_V = torch.tensor([0.0010359, 0.0708126, 0.0101394, 0.0101394])
FORWARD_GRADIENT_V = torch.tensor([0.0085632, -0.0897099, 0.0173788, 0.0637679])


def log_probs(logits_V: Tensor, count: int = 1) -> Tensor:
    """The same distribution at `count` places of one image."""
    return logits_V.log_softmax(-1).expand(1, count, -1)


def gradient(kl, tokens_BN: Tensor, weights_N: Tensor) -> Tensor:
    logits_V = LOGITS_V.clone().requires_grad_(True)
    count = tokens_BN.shape[1]
    kl_BN = kl(log_probs(logits_V, count), log_probs(REFERENCE_V, count), tokens_BN)
    return torch.autograd.grad((weights_N * kl_BN).sum(), logits_V)[0]


def test_divergences_have_the_values_worked_out_by_hand():
    one_11 = torch.tensor([[2]])
    ours, reference = log_probs(LOGITS_V), log_probs(REFERENCE_V)
    assert soft_cross_entropy(ours, reference, one_11).item() == pytest.approx(0.0227896, abs=1e-6)
    cross_entropy = -(reference.exp() * ours).sum().item()
    entropy = -(reference.exp() * reference).sum().item()
    assert (cross_entropy, entropy) == pytest.approx((1.3041132, 1.2813237), abs=1e-6)
    assert soft_cross_entropy(ours, reference, one_11).item() == pytest.approx(
        cross_entropy - entropy, abs=1e-6
    )


def test_k3_has_the_reverse_divergence_as_its_mean():
    k3_1N = k3(log_probs(LOGITS_V, 4), log_probs(REFERENCE_V, 4), EVERY_CODE_1N)
    torch.testing.assert_close(k3_1N[0], K3_V, rtol=1e-4, atol=1e-6)
    assert (LOGITS_V.softmax(-1) * k3_1N[0]).sum().item() == pytest.approx(0.0212090, abs=1e-6)


def test_gradients_are_those_worked_out_by_hand():
    one_11, whole_1 = torch.tensor([[1]]), torch.ones(1)
    forward_V = gradient(soft_cross_entropy, one_11, whole_1)
    torch.testing.assert_close(forward_V, FORWARD_GRADIENT_V, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(forward_V, LOGITS_V.softmax(-1) - REFERENCE_V.softmax(-1))


def test_the_cross_entropys_gradient_is_the_mean_of_k3s_with_no_variance():
    torch.testing.assert_close(
        gradient(k3, EVERY_CODE_1N, LOGITS_V.softmax(-1)), FORWARD_GRADIENT_V, rtol=1e-4, atol=1e-6
    )
    single = [gradient(k3, torch.tensor([[code]]), torch.ones(1)) for code in range(4)]
    assert max((one - FORWARD_GRADIENT_V).abs().max() for one in single) > 0.05


@pytest.mark.parametrize("name", ["ce", "k3"])
def test_every_divergence_is_zero_from_itself(name):
    kl = KL_ESTIMATORS[name]
    assert kl is not None
    same = log_probs(LOGITS_V, 4)
    torch.testing.assert_close(kl(same, same, EVERY_CODE_1N), torch.zeros(1, 4))


LOG_RATIO_BL = torch.tensor([[0.1, 0.3, -0.2, 0.6], [0.0, 0.4, 0.2, -0.2]])


def test_levels_average_over_token_and_image():
    assert torch.equal(per_token(LOG_RATIO_BL), LOG_RATIO_BL)
    by_image_BL = torch.tensor([[0.2] * 4, [0.1] * 4])
    torch.testing.assert_close(per_sequence(LOG_RATIO_BL), by_image_BL)


@pytest.mark.parametrize("level", [per_token, per_sequence])
def test_at_ratio_one_every_level_has_the_same_gradient(level):
    """They differ only once the policy has moved."""
    log_ratio_BL = torch.zeros(2, 4, requires_grad=True)
    loss_B = clipped_surrogate(
        level(log_ratio_BL), torch.tensor([1.0, -2.0]), epsilon=0.2, epsilon_high=0.2
    ).loss_B
    (gradient_BL,) = torch.autograd.grad(loss_B.sum(), log_ratio_BL)
    torch.testing.assert_close(gradient_BL, torch.tensor([[-0.25] * 4, [0.5] * 4]))


def test_clipping_is_asymmetric_and_stops_the_gradient_only_where_it_would_go_further():
    ratios_BL = torch.tensor([[0.7, 0.85, 1.25, 1.35], [0.7, 0.85, 1.25, 1.35]])
    log_ratio_BL = ratios_BL.log().requires_grad_(True)
    found = clipped_surrogate(log_ratio_BL, torch.tensor([1.0, -1.0]), epsilon=0.2, epsilon_high=0.28)
    expected_B = torch.tensor([-(0.7 + 0.85 + 1.25 + 1.28) / 4, (0.8 + 0.85 + 1.25 + 1.35) / 4])
    torch.testing.assert_close(found.loss_B, expected_B)
    (gradient_BL,) = torch.autograd.grad(found.loss_B.sum(), log_ratio_BL)
    stopped_BL = torch.tensor([[False, False, False, True], [True, False, False, False]])
    assert torch.equal(gradient_BL == 0, stopped_BL)
    assert torch.equal(found.high_BL | found.low_BL, stopped_BL)
    assert found.high_BL.sum() == found.low_BL.sum() == 1
