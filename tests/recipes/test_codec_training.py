"""Training of tokenizers: the codebook follows the latents, near duplicates go, the scale is measured."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from swiftmask.core.codebook import nearest, rows, telling_codes
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec
from swiftmask.models.mar.codec import KLCodec, KLConfig, Posterior
from swiftmask.recipes.codec_training import (
    Images,
    KLTrainer,
    VQTrainer,
    centre,
    measure_scale,
    pruned,
)
from swiftmask.training.reconstruction import ReconstructionConfig
from swiftmask.training.setup import train_step

PLAIN = ReconstructionConfig(edges=0.0)


@pytest.fixture
def vq() -> VQCodec:
    torch.manual_seed(0)
    config = VQConfig(
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=2,
        norm_num_groups=2,
    )
    return build_vq_codec(config)


@pytest.fixture
def kl() -> KLCodec:
    torch.manual_seed(0)
    config = KLConfig(
        ch=8,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=8,
        z_channels=4,
        num_groups=8,
    )
    return KLCodec(config)


def reconstructing(images_B3HW: Tensor) -> Images:
    return Images(images_B3HW, "codec", False)


def descend(trainer: nn.Module, batch: Images, steps: int, learning_rate: float) -> list[dict[str, Tensor]]:
    """Metrics of some updates on one batch, the loss among them."""
    optimizer = torch.optim.Adam([p for p in trainer.parameters() if p.requires_grad], lr=learning_rate)
    found = []
    for _ in range(steps):
        loss, metrics = train_step(trainer, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(metrics | {"loss": loss.detach()})
    return found


def test_training_vq_lowers_its_loss_and_moves_its_codes(vq: VQCodec) -> None:
    images_B3HW = torch.rand(4, 3, 1, 1).expand(-1, -1, 16, 16).contiguous()
    before_VC = vq.codebook_VC.clone()
    found = descend(VQTrainer(vq, PLAIN).train(), reconstructing(images_B3HW), 25, 5e-3)
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    assert not torch.equal(vq.codebook_VC, before_VC)


def test_a_centred_codec_starts_as_if_pixels_were_in_minus_one_to_one(vq: VQCodec) -> None:
    centred = copy.deepcopy(vq)
    centre(centred)
    images_B3HW, latent_BCHW = torch.rand(2, 3, 16, 16), torch.randn(2, 8, 8, 8)
    seen, meant = (
        codec.vq.encoder.conv_in(images)[..., 1:-1, 1:-1]  # the border is padded with another colour
        for codec, images in ((centred, images_B3HW), (vq, 2 * images_B3HW - 1))
    )
    torch.testing.assert_close(seen, meant)
    given, plain = (codec.vq.decoder.conv_out(latent_BCHW[:, :4]) for codec in (centred, vq))
    torch.testing.assert_close(given, (plain + 1) / 2)


def test_the_first_steps_have_no_codes_and_the_codes_then_start_from_latents(vq: VQCodec) -> None:
    trainer, images_B3HW = VQTrainer(vq, PLAIN).train(), torch.rand(2, 3, 16, 16)
    before_VC = vq.codebook_VC.clone()
    loss, metrics = trainer(replace(reconstructing(images_B3HW), quantised=False))
    loss.backward()
    assert vq.vq.encoder.conv_in.weight.grad is not None
    assert torch.equal(vq.codebook_VC, before_VC)
    assert "commitment" not in metrics
    latents_XC = rows(vq.vq.quant_conv(vq.vq.encoder(images_B3HW)))
    trainer.running.follow = lambda *_: None  # type: ignore[method-assign] # look at where codes start
    trainer(reconstructing(images_B3HW))
    assert (vq.codebook_VC[:, None] - latents_XC).abs().sum(-1).amin(dim=1).max() < 1e-5


def test_a_dead_code_is_moved_to_a_latent_of_the_batch(vq: VQCodec) -> None:
    trainer = VQTrainer(vq, PLAIN).train()
    trainer.running.count_V.fill_(10.0)
    trainer.running.count_V[3] = 0.0
    trainer.running.total_VC.copy_(10.0 * vq.codebook_VC)
    far_C = torch.tensor([50.0, 50.0])
    vq.codebook_VC[3] = far_C
    trainer(reconstructing(torch.rand(2, 3, 16, 16)))
    assert (vq.codebook_VC[3] - far_C).norm() > 10


def test_evaluation_leaves_the_codebook_alone(vq: VQCodec) -> None:
    before_VC = vq.codebook_VC.clone()
    VQTrainer(vq, PLAIN).eval()(reconstructing(torch.rand(2, 3, 16, 16)))
    assert torch.equal(vq.codebook_VC, before_VC)


def test_training_and_the_codec_pick_the_same_codes(vq: VQCodec) -> None:
    images_B3HW = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        vq.codebook_VC.copy_(torch.randn(16, 2))
    latents_XC = vq.vq.quant_conv(vq.vq.encoder(images_B3HW)).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(nearest(latents_XC, vq.codebook_VC), vq.encode(images_B3HW).flatten())


def test_the_less_used_of_the_closest_pairs_goes() -> None:
    apart_VC = torch.arange(8.0)[:, None] * torch.tensor([10.0, 0.0])
    apart_VC[5] = apart_VC[2] + 0.1
    apart_VC[6] = apart_VC[0] + 0.2
    count_V = torch.tensor([5.0, 1, 9, 1, 1, 3, 7, 1])
    assert telling_codes(apart_VC, count_V, 6).tolist() == [1, 2, 3, 4, 6, 7]


def test_a_pruned_codec_decodes_as_before_with_the_codes_it_kept(vq: VQCodec) -> None:
    with torch.no_grad():
        vq.codebook_VC.copy_(torch.randn(16, 2))
    count_V = torch.arange(16.0)
    smaller = pruned(vq, count_V, 4)
    kept_V = telling_codes(vq.codebook_VC, count_V, 4)
    codes_BHW = torch.randint(4, (2, 4, 4))
    assert (smaller.config.num_vq_embeddings, vq.config.num_vq_embeddings) == (4, 16)
    torch.testing.assert_close(smaller.decode(codes_BHW), vq.decode(kept_V[codes_BHW]))


def test_training_kl_lowers_its_loss_and_the_scale_is_measured(kl: KLCodec) -> None:
    images_B3HW = torch.rand(4, 3, 8, 8)
    trainer = KLTrainer(kl, PLAIN, divergence_weight=1e-4)
    found = descend(trainer, reconstructing(images_B3HW), 12, 3e-3)
    assert all(parameter.grad is not None for parameter in trainer.parameters())
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    scale = measure_scale(kl, [images_B3HW[:1], images_B3HW[1:]])
    posterior = Posterior.of(kl.moments(kl.to_pixels_in(images_B3HW)).detach())
    drawn = torch.cat([posterior.sample(torch.randn(4, 4, 4, 4)) for _ in range(200)])
    assert scale * drawn.std().item() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        measure_scale(kl, [])


def test_the_divergence_pulls_towards_the_standard_normal(kl: KLCodec) -> None:
    trainer = KLTrainer(kl, PLAIN, divergence_weight=1.0)
    found = descend(trainer, reconstructing(torch.zeros(2, 3, 8, 8)), 12, 3e-3)
    assert found[-1]["divergence"] < 0.5 * found[0]["divergence"]
