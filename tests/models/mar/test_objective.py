"""Training MAR: which tokens are masked, padding that changes nothing, and a loss that falls."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from swiftmask.models.mar import training as o
from swiftmask.models.mar.diffusion import add_noise, noise_error, variational_bound
from swiftmask.models.mar.network import KnownTokens, Network, NetworkConfig

B, L, C = 6, 16, 4


def batch_of(rates_B: Tensor, seed: int = 0, num_copies: int = 4) -> o.MaskedBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens_BLC = torch.randn(B, L, C, generator=generator)
    labels_B = torch.arange(B) % 5
    return o.MaskedBatch.draw(tokens_BLC, labels_B, rates_B, generator, num_copies=num_copies)


def test_mask_rates_are_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    rates_B = torch.cat([o.shared_mask_rate(1, generator) for _ in range(20_000)])
    assert rates_B.min() >= 0.7
    assert rates_B.max() <= 1.0
    assert rates_B.mean().item() == pytest.approx(0.8670, abs=0.002)
    assert rates_B.std().item() == pytest.approx(0.0835, abs=0.002)
    assert rates_B.median().item() == pytest.approx(0.8743, abs=0.003)
    assert (256 * rates_B).ceil().mean().item() == pytest.approx(222.5, abs=0.5)
    shared_B = o.shared_mask_rate(7, generator)
    assert len(shared_B.unique()) == 1
    assert shared_B.shape == (7,)


def test_mask_rates_of_all_sizes_are_maskgits() -> None:
    rates_B = o.all_mask_rates(20_000, torch.Generator().manual_seed(0))
    assert rates_B.min() < 0.01
    assert rates_B.max() > 0.99
    assert rates_B.mean().item() == pytest.approx(2 / torch.pi, abs=0.005)


@pytest.mark.parametrize("rates", [o.shared_mask_rate, o.all_mask_rates])
def test_every_token_is_known_or_masked(rates: Callable[[int, torch.Generator], Tensor]) -> None:
    for seed in range(5):
        rates_B = rates(B, torch.Generator().manual_seed(seed))
        batch = batch_of(rates_B, seed)
        masked_BL = torch.zeros(B * L, dtype=torch.bool).index_fill(0, batch.masked_X, True).view(B, L)
        expected_B = (rates_B * L).ceil().long()
        assert torch.equal(masked_BL.sum(dim=1), expected_B)
        assert len(batch.masked_X) == expected_B.sum()
        present_BN = torch.ones_like(batch.known_BN, dtype=torch.bool)
        present_BN = present_BN if batch.present_BN is None else batch.present_BN
        assert torch.equal(present_BN.sum(dim=1), L - expected_B)
        assert torch.equal(masked_BL.gather(1, batch.known_BN), ~present_BN)
        assert batch.timesteps_RX.shape == (4, len(batch.masked_X))
        assert batch.noise_RXC.shape == (4, len(batch.masked_X), C)


def test_nothing_is_filled_up_where_rates_agree() -> None:
    assert batch_of(torch.full((B,), 0.75)).present_BN is None
    assert batch_of(torch.tensor([0.7, 0.75, 0.8, 0.9, 1.0, 1.0])).present_BN is not None


def test_some_copies_can_be_very_noisy() -> None:
    tokens_BLC, labels_B = torch.zeros(B, L, C), torch.zeros(B, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    batch = o.MaskedBatch.draw(
        tokens_BLC, labels_B, torch.ones(B), generator, num_copies=3, num_noisy_copies=1
    )
    assert batch.timesteps_RX[:2].min() < o.NOISY[0]
    assert batch.timesteps_RX[2].min() >= o.NOISY[0]
    assert batch.timesteps_RX[2].max() < o.NOISY[1]


def test_the_guess_is_added_and_teaches_the_network(network: Network) -> None:
    torch.manual_seed(0)
    batch = batch_of(torch.full((B,), 0.75))
    trainer = o.MARTrainer(network.requires_grad_(True), guess_weight=2.0).eval()
    loss, metrics = trainer(batch)
    torch.testing.assert_close(loss, metrics["mse"] + metrics["vb"] + 2.0 * metrics["guess"])
    (gradient,) = torch.autograd.grad(metrics["guess"], network.mask_token)
    assert gradient.abs().sum() > 0


def test_labels_are_dropped_now_and_then() -> None:
    batch = o.MaskedBatch.draw(
        torch.zeros(4000, 1, C),
        torch.zeros(4000, dtype=torch.int64),
        torch.ones(4000),
        torch.Generator().manual_seed(0),
        num_copies=1,
    )
    assert batch.dropped_B.float().mean().item() == pytest.approx(0.1, abs=0.02)


@torch.no_grad()
def test_the_loss_is_the_mean_over_masked_tokens_and_copies(network: Network) -> None:
    """Image by image, without filling up: the reference's formula on each masked token."""
    batch = batch_of(torch.tensor([0.7, 0.75, 0.8, 0.9, 1.0, 1.0]))
    loss, metrics = o.MARTrainer(network).eval()(batch)
    assert batch.present_BN is not None
    errors = []
    for image in range(B):
        known_N = batch.known_BN[image][batch.present_BN[image]]
        vector = (
            network.null_vectors(1)
            if batch.dropped_B[image]
            else network.class_vectors(batch.labels_B)[image][None]
        )
        z_LD = network(KnownTokens.at(batch.tokens_BLC[image][None], known_N[None]), vector)[0]
        here = batch.masked_X // L == image
        places = batch.masked_X[here] % L
        for copy in range(4):
            timesteps, noise = batch.timesteps_RX[copy, here], batch.noise_RXC[copy, here]
            clean = batch.tokens_BLC[image, places]
            noisy = add_noise(clean, noise, timesteps)
            predicted = network.head(noisy, timesteps, z_LD[places])
            bound = variational_bound(predicted, clean, noisy, timesteps)
            errors.append(noise_error(predicted, noise) + bound)
    torch.testing.assert_close(loss, torch.cat(errors).mean())
    torch.testing.assert_close(loss, metrics["mse"] + metrics["vb"])


def test_a_dropped_label_trains_the_null_vector_alone(network: Network) -> None:
    batch = batch_of(torch.full((B,), 0.75))
    for dropped in (True, False):
        network.zero_grad()
        everyone = replace(batch, dropped_B=torch.full((B,), dropped))
        o.MARTrainer(network)(everyone)[0].backward()
        assert network.fake_latent.grad is not None
        assert network.class_emb.weight.grad is not None
        assert bool(network.fake_latent.grad.any()) is dropped
        assert bool(network.class_emb.weight.grad.any()) is not dropped


def test_training_lowers_the_loss(sizes: NetworkConfig) -> None:
    trainer = o.MARTrainer(Network(replace(sizes, dropout=0.0)))
    optimizer = torch.optim.Adam(trainer.parameters(), lr=3e-3)
    batch, losses = batch_of(torch.full((B,), 0.75)), []
    for _ in range(25):
        loss, _ = trainer(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in trainer.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_trains_in_the_precisions_of_the_loop(network: Network) -> None:
    batch, trainer = batch_of(o.all_mask_rates(B, torch.Generator().manual_seed(0))), o.MARTrainer(network)
    exact = trainer(batch)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        automatic, _ = trainer(batch)
    weights = {name: parameter.bfloat16() for name, parameter in trainer.named_parameters()}
    cast, _ = functional_call(trainer, weights, (batch,))
    for loss in (automatic, cast):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact, rel=0.05)
        loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
