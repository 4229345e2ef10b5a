"""Training of the tokenizer: the codebook follows the latents, dead codes come back, near duplicates go."""

import pytest
import torch
from torch import Tensor

from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.tokenizer_training import TokenizerTrainer, prune_codebook, train_step

TINY = VQGANConfig(
    ch=4,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=8,
    z_channels=4,
    n_embed=8,
    embed_dim=2,
    num_groups=2,
)


@pytest.fixture
def codec() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(TINY)


def _set_codes(codec: VQGAN, codebook_KC: Tensor) -> None:
    with torch.no_grad():
        codec.quantize.embedding.weight.copy_(codebook_KC)


def test_training_lowers_the_loss(codec: VQGAN) -> None:
    images_B3HW = torch.rand(4, 3, 1, 1).expand(-1, -1, 8, 8).contiguous()
    trainer = TokenizerTrainer(codec).train()
    optimizer = torch.optim.Adam([p for p in trainer.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(30):
        loss, _ = train_step(trainer, images_B3HW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_dead_code_is_moved_to_a_latent_of_the_batch(codec: VQGAN) -> None:
    trainer = TokenizerTrainer(codec).train()
    trainer.running.count_V.fill_(10.0)
    trainer.running.count_V[3] = 0.0
    trainer.running.total_VC.copy_(10.0 * codec.quantize.embedding.weight)
    far_C = torch.tensor([50.0, 50.0])
    codec.quantize.embedding.weight[3] = far_C
    trainer(torch.rand(2, 3, 8, 8))
    assert (codec.quantize.embedding.weight[3] - far_C).norm() > 10


def test_pruning_drops_the_less_used_of_the_closest_pairs(codec: VQGAN) -> None:
    apart_KC = torch.arange(8.0)[:, None] * torch.tensor([10.0, 0.0])
    apart_KC[5] = apart_KC[2] + 0.1
    apart_KC[6] = apart_KC[0] + 0.2
    _set_codes(codec, apart_KC)
    count_K = torch.tensor([5.0, 1, 9, 1, 1, 3, 7, 1])
    pruned = prune_codebook(codec, count_K, 6)
    assert pruned.config.n_embed == 6
    assert torch.equal(pruned.quantize.embedding.weight, apart_KC[[1, 2, 3, 4, 6, 7]])
    assert codec.config.n_embed == 8, "the codec given is left as it is"


def test_a_pruned_codec_decodes_as_before_with_the_codes_it_kept(codec: VQGAN) -> None:
    _set_codes(codec, torch.randn(8, 2))
    pruned = prune_codebook(codec.eval(), torch.arange(8.0), 4)
    kept = [
        int((codec.quantize.embedding.weight == code_C).all(1).nonzero())
        for code_C in pruned.quantize.embedding.weight
    ]
    codes_BHW = torch.randint(4, (2, 4, 4))
    torch.testing.assert_close(pruned.decode(codes_BHW), codec.decode(torch.tensor(kept)[codes_BHW]))
