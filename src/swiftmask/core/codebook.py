"""A codebook that follows its encoder as running k-means, for training small codecs from scratch.

Codes move to the exponential moving average of the latents assigned to them (van den Oord et al., arXiv
1711.00937, appendix A.1), and codes that fall out of use are re-seeded from latents of the current batch (as
in Jukebox, arXiv 2005.00341, section 3.1); with gradients alone the encoder ran away from the codes
(docs/log.md).
"""

import torch
from torch import Tensor, nn

_DECAY = 0.95
_DEAD_BELOW = 0.03
"""A code is dead when its running share of picks falls below this fraction of a uniform share."""


def nearest(latents_XC: Tensor, codebook_VC: Tensor) -> Tensor:
    """The code of each latent at the smallest squared distance: int64 [...], for latents [..., C].

    In float32 also under autocast: bfloat16 confuses near codes. |z|^2, equal for all codes, is left out.
    """
    codebook_VC = codebook_VC.float()
    with torch.autocast(latents_XC.device.type, enabled=False):
        distance_XV = codebook_VC.square().sum(1) - 2.0 * latents_XC.float() @ codebook_VC.T
    return distance_XV.argmin(-1)


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
        self.count_V.lerp_(count_V, 1 - _DECAY)
        self.total_VC.lerp_(total_VC, 1 - _DECAY)
        centre_VC = self.total_VC / self.count_V[:, None].clamp(min=1e-5)
        codebook_VC.copy_(torch.where((self.count_V > 1e-3)[:, None], centre_VC, codebook_VC))

    @torch.no_grad()
    def restart_dead(self, codebook_VC: Tensor, latents_XC: Tensor) -> None:
        """Move codes that are hardly picked to latents of this batch."""
        num_codes = len(self.count_V)
        uniform = len(latents_XC) / num_codes
        dead_V = self.count_V < _DEAD_BELOW * uniform
        seeds_VC = latents_XC[torch.randint(len(latents_XC), (num_codes,), device=latents_XC.device)]
        codebook_VC.copy_(torch.where(dead_V[:, None], seeds_VC, codebook_VC))
        self.count_V.copy_(torch.where(dead_V, 0.5 * uniform, self.count_V))
        self.total_VC.copy_(torch.where(dead_V[:, None], 0.5 * uniform * seeds_VC, self.total_VC))

    def perplexity(self) -> Tensor:
        """Number of codes that would be in use if all of them were used equally."""
        share_V = self.count_V / self.count_V.sum()
        return torch.exp(-(share_V * (share_V + 1e-9).log()).sum())


@torch.no_grad()
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


def rows(latent_BCHW: Tensor) -> Tensor:
    """Latents one by one, float32 and detached: [B * H * W, C]."""
    return latent_BCHW.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
