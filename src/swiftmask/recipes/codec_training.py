"""The trainers of codecs, one for codes (VQ) and one for Gaussian latents (KL), with the same losses of the
reconstruction (training/reconstruction.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.codebook import RunningCodebook, nearest, rows, telling_codes
from swiftmask.core.vq_codec import VQCodec, build_vq_codec
from swiftmask.models.mar.codec import KLCodec, Posterior
from swiftmask.training.reconstruction import ReconstructionConfig, ReconstructionLoss, Turn

COMMITMENT_WEIGHT = 0.25

Codec = VQCodec | KLCodec


@dataclass(frozen=True, slots=True)
class Images:
    """Images [B, 3, H, W] in [0, 1], and what the step does with them.

    Attributes:
        turn: whose update it is.
        judged: whether the discriminator takes part yet.
        quantised: whether latents are replaced by codes yet ("vq").
    """

    images_B3HW: Tensor
    turn: Turn
    judged: bool
    quantised: bool = True


class CodecTrainer(nn.Module, ABC):
    """A codec with its loss as `forward`; `_coded` is what VQ and KL have of their own."""

    codec: Codec

    def __init__(self, losses: ReconstructionConfig) -> None:
        super().__init__()
        self.losses = ReconstructionLoss(losses)

    def forward(self, batch: Images) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of the codec's or the discriminator's turn."""
        if batch.turn == "discriminator":
            with torch.no_grad():
                reconstruction_B3HW, _, _ = self._coded(batch)
            return self.losses.discriminate(reconstruction_B3HW, batch.images_B3HW)
        reconstruction_B3HW, cost, own = self._coded(batch)
        loss, metrics = self.losses(
            reconstruction_B3HW, batch.images_B3HW, self.last_layer, judged=batch.judged
        )
        return loss + cost, metrics | own

    @property
    def last_layer(self) -> nn.Parameter:
        """Of the decoder."""
        decoder: Any = self.codec.vq.decoder if isinstance(self.codec, VQCodec) else self.codec.decoder
        return decoder.conv_out.weight

    @abstractmethod
    def _coded(self, batch: Images) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruction in [0, 1] (not clamped), cost of the codes or latents, and metrics."""


class VQTrainer(CodecTrainer):
    """The codebook follows the encoder (core/codebook.py); a commitment loss holds the encoder to it.

    The first steps train a plain autoencoder (`Images.quantised`), and codes then start from its latents
    (docs/log.md).
    diffusers' own quantiser, which learns the codebook by gradients, is not called.
    """

    codec: VQCodec

    def __init__(self, codec: VQCodec, losses: ReconstructionConfig) -> None:
        super().__init__(losses)
        self.codec = codec
        codebook_VC = codec.codebook_VC.requires_grad_(False)
        self.running = RunningCodebook(*codebook_VC.shape)

    def _coded(self, batch: Images) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        vq, codebook_VC = self.codec.vq, self.codec.codebook_VC
        latent_BCHW = vq.quant_conv(vq.encoder(batch.images_B3HW))
        if not batch.quantised:
            return vq.decoder(vq.post_quant_conv(latent_BCHW)), latent_BCHW.new_zeros(()), {}
        latents_XC = rows(latent_BCHW)
        if self.training and torch.is_grad_enabled():
            self.running.restart_dead(codebook_VC, latents_XC)
        codes_X = nearest(latents_XC, codebook_VC)
        nearest_BHWC = codebook_VC[codes_X].unflatten(0, (len(latent_BCHW), *latent_BCHW.shape[2:]))
        nearest_BCHW = nearest_BHWC.permute(0, 3, 1, 2)
        straight_through_BCHW = latent_BCHW + (nearest_BCHW - latent_BCHW).detach()
        reconstruction_B3HW = vq.decoder(vq.post_quant_conv(straight_through_BCHW))
        if self.training and torch.is_grad_enabled():
            self.running.follow(codebook_VC, latents_XC, codes_X)
        commitment = F.mse_loss(latent_BCHW.float(), nearest_BCHW)
        metrics = {"commitment": commitment, "perplexity": self.running.perplexity()}
        return reconstruction_B3HW, COMMITMENT_WEIGHT * commitment, metrics


class KLTrainer(CodecTrainer):
    """A little divergence from the standard normal (weight 1e-6 to 1e-4; arXiv 2112.10752, section 3.1) keeps
    latents from running away, and gives the decoder noise to be robust against.

    Args:
        divergence_weight: of the divergence in nats, a mean over latents and channels as the errors are means
            over pixels.
    """

    codec: KLCodec

    def __init__(self, codec: KLCodec, losses: ReconstructionConfig, divergence_weight: float) -> None:
        super().__init__(losses)
        self.codec = codec
        self.divergence_weight = divergence_weight

    def _coded(self, batch: Images) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        posterior = Posterior.of(self.codec.moments(2 * batch.images_B3HW - 1))
        latent_BCHW = posterior.sample(torch.randn_like(posterior.mean_BCHW))
        reconstruction_B3HW = (self.codec.decode_latent(latent_BCHW).float() + 1) / 2
        divergence = posterior.divergence()
        return reconstruction_B3HW, self.divergence_weight * divergence, {"divergence": divergence}


@torch.no_grad()
def centre(codec: VQCodec) -> None:
    """Let a fresh codec start as if its pixels were in [-1, 1], in place; its layout has them in [0, 1].

    Random weights so see contrasts around grey, and begin with grey images (docs/log.md).
    """
    first: Any = codec.vq.encoder.conv_in
    last: Any = codec.vq.decoder.conv_out
    first.bias.sub_(first.weight.sum(dim=(1, 2, 3)))
    first.weight.mul_(2)
    last.weight.div_(2)
    last.bias.div_(2).add_(0.5)


@torch.no_grad()
def pruned(codec: VQCodec, count_V: Tensor, num_codes: int) -> VQCodec:
    """The codec with its `num_codes` most telling codes, in eval mode; the one given is left as it is.

    Args:
        count_V: how often each code is used.
    """
    codebook_VC = codec.codebook_VC
    kept_VC = codebook_VC[telling_codes(codebook_VC, count_V, num_codes)]
    smaller = build_vq_codec(replace(codec.config, num_vq_embeddings=num_codes))
    smaller.vq.load_state_dict(codec.vq.state_dict() | {"quantize.embedding.weight": kept_VC})
    return smaller.eval()


@torch.no_grad()
def measure_scale(codec: KLCodec, batches: Iterable[Tensor]) -> float:
    """One over the standard deviation of unscaled latents, sampling included, over images in [0, 1]."""
    count, total, squares = 0, 0.0, 0.0
    for images_B3HW in batches:
        posterior = Posterior.of(codec.moments(codec.to_pixels_in(images_B3HW)))
        mean_BCHW = posterior.mean_BCHW.double()
        count += mean_BCHW.numel()
        total += float(mean_BCHW.sum())
        squares += float((mean_BCHW.square() + posterior.log_variance_BCHW.double().exp()).sum())
    if count == 0:
        raise ValueError("the scale of latents is measured on images: expected at least one batch, got none")
    return (squares / count - (total / count) ** 2) ** -0.5
