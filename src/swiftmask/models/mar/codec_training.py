"""Training a small KL autoencoder from scratch: reconstruction, and a little divergence from the standard
normal.

The divergence (weight 1e-6 to 1e-4; Rombach et al., arXiv 2112.10752, section 3.1) only keeps latents from
running away, and gives the decoder noise to be robust against. A new codec has latents of its own size: its
`scale` is measured once it is trained. Left out: the perceptual and adversarial losses, which flat colours
and sharp edges do not need.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.models.mar.codec import KLCodec, Posterior


class CodecTrainer(nn.Module):
    """The codec with its loss as `forward`.

    Args:
        divergence_weight: of the divergence in nats, a mean over latents and channels as the errors are means
            over pixels.
    """

    def __init__(self, codec: KLCodec, *, divergence_weight: float = 1e-5) -> None:
        super().__init__()
        self.codec = codec
        self.divergence_weight = divergence_weight

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch of pictures in [0, 1]; draws the latents' noise from torch's state."""
        target_B3HW = self.codec.to_pixels_in(images_B3HW)
        posterior = Posterior.of(self.codec.moments(target_B3HW))
        latent_BCHW = posterior.sample(torch.randn_like(posterior.mean_BCHW))
        reconstruction_B3HW = self.codec.decode_latent(latent_BCHW).float()
        absolute = F.l1_loss(reconstruction_B3HW, target_B3HW)
        squared = F.mse_loss(reconstruction_B3HW, target_B3HW)
        divergence = posterior.divergence()
        loss = absolute + squared + self.divergence_weight * divergence
        return loss, {"l1": absolute, "mse": squared, "divergence": divergence}


def train_step(
    model: Callable[..., tuple[Tensor, dict[str, Tensor]]], images_B3HW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch of pictures through the codec."""
    return model(images_B3HW)


@torch.no_grad()
def measure_scale(codec: KLCodec, batches: Iterable[Tensor]) -> float:
    """One over the standard deviation of unscaled latents, sampling included, over pictures in [0, 1].

    Errors: ValueError without pictures.
    """
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
