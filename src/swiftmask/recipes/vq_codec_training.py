"""Training a small `VQCodec` (core/vq_codec.py) from scratch, as MaskGIT's tokenizer is trained.

Reconstruction and commitment losses move the network; the codebook follows it as running k-means (van den
Oord et al., arXiv 1711.00937, appendix A.1), and codes that fall out of use are re-seeded from latents of the
current batch (as in Jukebox, arXiv 2005.00341, section 3.1). What diffusers' `VQModel` does not allow is done
around it: its own quantiser, which learns the codebook by gradients, is not called. Left out: the perceptual
and adversarial losses, which flat colours and sharp edges do not need.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.vq_codec import VQCodec, build_vq_codec
from swiftmask.models.maskgit.codec import COMMITMENT_WEIGHT
from swiftmask.models.maskgit.tokenizer_training import CODEBOOK_DECAY, DEAD_BELOW

_RANGE = 2.0
"""Errors are taken as if pixels lay in [-1, 1], which the weight of the commitment is meant for."""


class RunningCodebook(nn.Module):
    """How often each code was picked lately, and the sum of the latents it was picked for.

    Buffers, so that a resumed run continues exactly. A codebook [V, C] is changed in place.
    """

    count_V: Tensor
    total_VC: Tensor

    def __init__(self, num_codes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("count_V", torch.zeros(num_codes))
        self.register_buffer("total_VC", torch.zeros(num_codes, channels))

    @torch.no_grad()
    def follow(self, codebook_VC: Tensor, latents_XC: Tensor, codes_X: Tensor) -> None:
        """Move each code to the running mean of its latents."""
        ones_X = torch.ones_like(codes_X, dtype=torch.float32)
        count_V = torch.zeros_like(self.count_V).index_add_(0, codes_X, ones_X)
        total_VC = torch.zeros_like(self.total_VC).index_add_(0, codes_X, latents_XC)
        self.count_V.lerp_(count_V, 1 - CODEBOOK_DECAY)
        self.total_VC.lerp_(total_VC, 1 - CODEBOOK_DECAY)
        centre_VC = self.total_VC / self.count_V[:, None].clamp(min=1e-5)
        codebook_VC.copy_(torch.where((self.count_V > 1e-3)[:, None], centre_VC, codebook_VC))

    @torch.no_grad()
    def restart_dead(self, codebook_VC: Tensor, latents_XC: Tensor) -> None:
        """Move codes that are hardly picked to latents of this batch."""
        num_codes = len(self.count_V)
        uniform = len(latents_XC) / num_codes
        dead_V = self.count_V < DEAD_BELOW * uniform
        seeds_VC = latents_XC[torch.randint(len(latents_XC), (num_codes,), device=latents_XC.device)]
        codebook_VC.copy_(torch.where(dead_V[:, None], seeds_VC, codebook_VC))
        self.count_V.copy_(torch.where(dead_V, 0.5 * uniform, self.count_V))
        self.total_VC.copy_(torch.where(dead_V[:, None], 0.5 * uniform * seeds_VC, self.total_VC))

    def perplexity(self) -> Tensor:
        """Number of codes that would be in use if all of them were used equally."""
        share_V = self.count_V / self.count_V.sum()
        return torch.exp(-(share_V * (share_V + 1e-9).log()).sum())


class CodecTrainer(nn.Module):
    """The codec with its loss as `forward`, and the running statistics of its codebook."""

    def __init__(self, codec: VQCodec) -> None:
        super().__init__()
        self.codec = codec
        codebook_VC = codebook_of(codec).requires_grad_(False)
        self.running = RunningCodebook(*codebook_VC.shape)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch of pictures in [0, 1]."""
        vq, codebook_VC = self.codec.vq, codebook_of(self.codec)
        latent_BCHW = vq.quant_conv(vq.encoder(images_B3HW))
        latents_XC = latent_BCHW.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        if self.training:
            self.running.restart_dead(codebook_VC, latents_XC)
        codes_X = nearest(latents_XC, codebook_VC)
        nearest_BHWC = codebook_VC[codes_X].unflatten(0, (len(images_B3HW), *latent_BCHW.shape[2:]))
        nearest_BCHW = nearest_BHWC.permute(0, 3, 1, 2)
        straight_through_BCHW = latent_BCHW + (nearest_BCHW - latent_BCHW).detach()
        reconstruction_B3HW = vq.decoder(vq.post_quant_conv(straight_through_BCHW)).float()
        if self.training:
            self.running.follow(codebook_VC, latents_XC, codes_X)
        commitment = F.mse_loss(latent_BCHW.float(), nearest_BCHW)
        error_B3HW = _RANGE * (reconstruction_B3HW - images_B3HW)
        absolute, squared = error_B3HW.abs().mean(), error_B3HW.square().mean()
        metrics = {"l1": absolute, "mse": squared, "commitment": commitment}
        loss = absolute + squared + COMMITMENT_WEIGHT * commitment
        return loss, metrics | {"perplexity": self.running.perplexity()}


def train_step(
    model: Callable[..., tuple[Tensor, dict[str, Tensor]]], images_B3HW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch of pictures through the codec."""
    return model(images_B3HW)


def codebook_of(codec: VQCodec) -> Tensor:
    """The codec's own codebook [V, C]."""
    return codec.vq.quantize.embedding.weight


def nearest(latents_XC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Codes [X] at the smallest squared distance, in float32 also under autocast."""
    with torch.autocast(latents_XC.device.type, enabled=False):
        distance_XV = codebook_VC.square().sum(1) - 2.0 * latents_XC @ codebook_VC.T
    return distance_XV.argmin(-1)


@torch.no_grad()
def pruned(codec: VQCodec, count_V: Tensor, num_codes: int) -> VQCodec:
    """The codec with its `num_codes` most telling codes, in eval mode; the one given is left as it is.

    Args:
        count_V: how often each code is used.
    """
    codebook_VC = codebook_of(codec)
    kept_VC = codebook_VC[telling_codes(codebook_VC, count_V, num_codes)]
    smaller = build_vq_codec(replace(codec.config, num_vq_embeddings=num_codes))
    smaller.vq.load_state_dict(codec.vq.state_dict() | {"quantize.embedding.weight": kept_VC})
    return smaller.eval()


def telling_codes(codebook_VC: Tensor, count_V: Tensor, num_codes: int) -> Tensor:
    """Indices of the codes to keep, ascending: of the closest pair, the less used one goes, again and again.

    k-means gives what is frequent many codes that look alike, and which one a patch gets is noise that a
    generator would have to learn (docs/log.md).
    """
    distance_VV = torch.cdist(codebook_VC, codebook_VC).fill_diagonal_(torch.inf)
    kept_V = torch.ones_like(count_V, dtype=torch.bool)
    for _ in range(len(count_V) - num_codes):
        pair = divmod(int(distance_VV.argmin()), len(count_V))
        dropped = min(pair, key=lambda code: float(count_V[code]))
        distance_VV[dropped, :] = distance_VV[:, dropped] = torch.inf
        kept_V[dropped] = False
    return kept_V.nonzero()[:, 0]
