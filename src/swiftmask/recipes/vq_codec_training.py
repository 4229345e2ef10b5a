"""Training a small `VQCodec` (core/vq_codec.py) from scratch, as MaskGIT's tokenizer is trained.

Reconstruction and commitment losses move the network; the codebook follows it (core/codebook.py). What
diffusers' `VQModel` does not allow is done around it: its own quantiser, which learns the codebook by
gradients, is not called. Left out: the perceptual and adversarial losses, which flat colours and sharp edges
do not need.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.codebook import RunningCodebook, rows, telling_codes
from swiftmask.core.vq_codec import VQCodec, build_vq_codec
from swiftmask.models.maskgit.codec import COMMITMENT_WEIGHT

_RANGE = 2.0
"""Errors are taken as if pixels lay in [-1, 1], which the weight of the commitment is meant for."""


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
        latents_XC = rows(latent_BCHW)
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
