"""Training a small VQGAN from scratch: reconstruction and commitment losses, a codebook that follows.

The codebook is running k-means (core/codebook.py). Left out: the perceptual and adversarial losses of the
VQGAN paper, which flat colours and sharp edges do not need.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.codebook import RunningCodebook, rows, telling_codes
from swiftmask.models.maskgit.codec import COMMITMENT_WEIGHT, VQGAN


class TokenizerTrainer(nn.Module):
    """The codec with its loss as `forward`, and the running statistics of its codebook."""

    def __init__(self, codec: VQGAN) -> None:
        super().__init__()
        self.codec = codec
        codebook_KC = codec.quantize.embedding.weight.requires_grad_(False)
        self.running = RunningCodebook(*codebook_KC.shape)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch of pictures in [0, 1]."""
        codec = self.codec
        target_B3HW = codec.to_pixels_in(images_B3HW)
        latent_BCHW = codec.encode_latent(target_B3HW)
        codebook_KC, latents_XC = codec.quantize.embedding.weight, rows(latent_BCHW)
        if self.training:
            self.running.restart_dead(codebook_KC, latents_XC)
        quantized = codec.quantize(latent_BCHW)
        reconstruction_B3HW = codec.decode_latent(quantized.z_BCHW).float()
        if self.training:
            self.running.follow(codebook_KC, latents_XC, quantized.codes_BHW.flatten())
        absolute = F.l1_loss(reconstruction_B3HW, target_B3HW)
        squared = F.mse_loss(reconstruction_B3HW, target_B3HW)
        loss = absolute + squared + COMMITMENT_WEIGHT * quantized.commitment_loss
        metrics = {"l1": absolute, "mse": squared, "commitment": quantized.commitment_loss}
        return loss, metrics | {"perplexity": self.running.perplexity()}


@torch.no_grad()
def prune_codebook(codec: VQGAN, count_K: Tensor, num_codes: int) -> VQGAN:
    """The codec with its `num_codes` most telling codes, in the mode it is in.

    Args:
        count_K: how often each code is used.
    """
    codebook_KC = codec.quantize.embedding.weight
    kept_KC = codebook_KC[telling_codes(codebook_KC, count_K, num_codes)]
    pruned = VQGAN(replace(codec.config, n_embed=num_codes))
    pruned.load_state_dict(codec.state_dict() | {"quantize.embedding.weight": kept_KC})
    return pruned.train(codec.training)


def train_step(
    model: Callable[..., tuple[Tensor, dict[str, Tensor]]], images_B3HW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch of pictures through the tokenizer."""
    return model(images_B3HW)
