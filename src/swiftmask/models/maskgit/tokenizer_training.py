"""Training a small VQGAN from scratch: reconstruction and commitment losses, codebook by running k-means.

The codebook follows the encoder by exponential moving averages of the latents assigned to each code (van
den Oord et al., arXiv 1711.00937, appendix A.1), and codes that fall out of use are re-seeded from latents
of the current batch (as in Jukebox, arXiv 2005.00341, section 3.1); with gradients alone the encoder ran
away from the codes (docs/log.md). Left out: the perceptual and adversarial losses of the VQGAN paper, which
flat colours and sharp edges do not need.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.models.maskgit.codec import COMMITMENT_WEIGHT, VQGAN

CODEBOOK_DECAY = 0.95
DEAD_BELOW = 0.03
"""A code is dead when its running share of picks falls below this fraction of a uniform share."""


class TokenizerTrainer(nn.Module):
    """The codec and the running statistics of its codebook (buffers, so that a resumed run continues
    exactly).

    Attributes:
        count_K: running number of latents per batch assigned to each code.
        total_KC: running sum of those latents.
    """

    count_K: Tensor
    total_KC: Tensor

    def __init__(self, codec: VQGAN) -> None:
        super().__init__()
        self.codec = codec
        codec.quantize.embedding.weight.requires_grad_(False)
        self.register_buffer("count_K", torch.zeros(codec.config.n_embed))
        self.register_buffer("total_KC", torch.zeros(codec.config.n_embed, codec.config.embed_dim))

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch of pictures in [0, 1]."""
        codec = self.codec
        target_B3HW = codec.to_pixels_in(images_B3HW)
        latent_BCHW = codec.encode_latent(target_B3HW)
        if self.training:
            self._restart_dead_codes(latent_BCHW)
        quantized = codec.quantize(latent_BCHW)
        reconstruction_B3HW = codec.decode_latent(quantized.z_BCHW).float()
        if self.training:
            self._follow(latent_BCHW, quantized.codes_BHW)
        absolute = F.l1_loss(reconstruction_B3HW, target_B3HW)
        squared = F.mse_loss(reconstruction_B3HW, target_B3HW)
        loss = absolute + squared + COMMITMENT_WEIGHT * quantized.commitment_loss
        share_K = self.count_K / self.count_K.sum()
        perplexity = torch.exp(-(share_K * (share_K + 1e-9).log()).sum())
        metrics = {"l1": absolute, "mse": squared, "commitment": quantized.commitment_loss}
        return loss, metrics | {"perplexity": perplexity}

    @torch.no_grad()
    def _follow(self, latent_BCHW: Tensor, codes_BHW: Tensor) -> None:
        latents_XC, codes_X = _rows(latent_BCHW), codes_BHW.flatten()
        ones_X = torch.ones_like(codes_X, dtype=torch.float32)
        count_K = torch.zeros_like(self.count_K).index_add_(0, codes_X, ones_X)
        total_KC = torch.zeros_like(self.total_KC).index_add_(0, codes_X, latents_XC)
        self.count_K.lerp_(count_K, 1 - CODEBOOK_DECAY)
        self.total_KC.lerp_(total_KC, 1 - CODEBOOK_DECAY)
        centre_KC = self.total_KC / self.count_K[:, None].clamp(min=1e-5)
        used_K1 = (self.count_K > 1e-3)[:, None]
        codebook_KC = self.codec.quantize.embedding.weight
        codebook_KC.copy_(torch.where(used_K1, centre_KC, codebook_KC))

    @torch.no_grad()
    def _restart_dead_codes(self, latent_BCHW: Tensor) -> None:
        latents_XC, num_codes = _rows(latent_BCHW), len(self.count_K)
        uniform = len(latents_XC) / num_codes
        dead_K = self.count_K < DEAD_BELOW * uniform
        picks_K = torch.randint(len(latents_XC), (num_codes,), device=latents_XC.device)
        codebook_KC = self.codec.quantize.embedding.weight
        codebook_KC.copy_(torch.where(dead_K[:, None], latents_XC[picks_K], codebook_KC))
        self.count_K.copy_(torch.where(dead_K, 0.5 * uniform, self.count_K))
        self.total_KC.copy_(torch.where(dead_K[:, None], 0.5 * uniform * latents_XC[picks_K], self.total_KC))


@torch.no_grad()
def prune_codebook(codec: VQGAN, count_K: Tensor, num_codes: int) -> VQGAN:
    """The codec with its `num_codes` most telling codes: of the closest pair, the less used one goes, again
    and again.

    k-means splits what is frequent, so that a flat background owns many codes that look alike and follow each
    other at random: entropy that a generator would have to learn and nobody could see (docs/log.md).

    Args:
        count_K: how often each code is used.
    """
    codebook_KC = codec.quantize.embedding.weight
    distance_KK = torch.cdist(codebook_KC, codebook_KC).fill_diagonal_(torch.inf)
    for _ in range(len(count_K) - num_codes):
        pair = divmod(int(distance_KK.argmin()), len(count_K))
        dropped = min(pair, key=lambda code: float(count_K[code]))
        distance_KK[dropped, :] = distance_KK[:, dropped] = torch.inf
        count_K = count_K.index_fill(0, torch.tensor([dropped]), -1.0)
    pruned = VQGAN(replace(codec.config, n_embed=num_codes))
    kept_KC = {"quantize.embedding.weight": codebook_KC[count_K >= 0]}
    pruned.load_state_dict(codec.state_dict() | kept_KC)
    return pruned.train(codec.training)


def train_step(
    model: Callable[..., tuple[Tensor, dict[str, Tensor]]], images_B3HW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch of pictures through the tokenizer."""
    return model(images_B3HW)


def _rows(latent_BCHW: Tensor) -> Tensor:
    return latent_BCHW.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
