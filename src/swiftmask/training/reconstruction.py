"""What a codec's reconstruction is measured by: pixels, edges, features of a network, and a discriminator.

VQGAN (Esser et al., arXiv 2012.09841, section 3.1) and latent diffusion (arXiv 2112.10752, appendix G) train
with an absolute error, a perceptual loss and a patch discriminator with hinge losses, whose weight is
balanced against the reconstruction by their gradients at the decoder's last layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import read_tensors

_RANGE = 2.0
"""Errors are taken as if pixels were in [-1, 1], which the weights of the other losses are meant for."""

Turn = Literal["codec", "discriminator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionConfig:
    """Weights of the losses beside the absolute and the squared error; 0 leaves one out.

    Attributes:
        edges: weight of the absolute error of differences between neighbouring pixels, at three scales. Fine
            lines are few pixels, and the plain errors hardly see them.
        perceptual: weight of the distance between features of `perceptual_network`.
        perceptual_network: weights of a VGG16 (ImageNet, torchvision's layout, `features.*`).
        adversarial: weight of the patch discriminator's loss, times the balance of the gradients.
        adversarial_after: steps before the discriminator takes part.
        discriminator_width: channels of its first layer.
    """

    edges: float = 1.0
    perceptual: float = 0.0
    perceptual_network: Path | None = None
    adversarial: float = 0.0
    adversarial_after: int = 1000
    discriminator_width: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.perceptual > 0) != (self.perceptual_network is not None):
            raise ValueError(
                "perceptual and perceptual_network go together: give a weight above 0 and a file of VGG16"
            )

    def turn(self, step: int) -> Turn:
        """Whose update a step is: after `adversarial_after` steps, the two take turns."""
        trains_both = self.adversarial > 0 and step >= self.adversarial_after
        return "discriminator" if trains_both and step % 2 else "codec"


class ReconstructionLoss(nn.Module):
    """Losses of images in [0, 1] and their reconstructions, with the discriminator as a module."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.discriminator_width) if config.adversarial else None
        self.perceptual = PerceptualFeatures(config.perceptual_network) if config.perceptual_network else None

    def forward(
        self, reconstruction_B3HW: Tensor, images_B3HW: Tensor, last_layer: nn.Parameter, *, judged: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The codec's loss and metrics.

        Args:
            last_layer: of the decoder; the adversarial loss is balanced there.
            judged: whether the discriminator takes part yet.
        """
        config = self.config
        error_B3HW = _RANGE * (reconstruction_B3HW.float() - images_B3HW)
        metrics = {"l1": error_B3HW.abs().mean(), "mse": error_B3HW.square().mean()}
        loss = metrics["l1"] + metrics["mse"]
        if config.edges:
            metrics["edges"] = edge_error(error_B3HW)
            loss = loss + config.edges * metrics["edges"]
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual.distance(reconstruction_B3HW.float(), images_B3HW)
            loss = loss + config.perceptual * metrics["perceptual"]
        if self.discriminator is not None and judged:
            fooled = -self.discriminator(reconstruction_B3HW.float()).mean()
            weight = _balance(loss, fooled, last_layer) if loss.requires_grad else loss.new_ones(())
            metrics["fooled"] = fooled
            loss = loss + config.adversarial * weight * fooled
        return loss, metrics

    def discriminate(
        self, reconstruction_B3HW: Tensor, images_B3HW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's hinge loss and how far apart it holds the two."""
        assert self.discriminator is not None
        real, fake = self.discriminator(images_B3HW), self.discriminator(reconstruction_B3HW.detach().float())
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return loss, {"discriminator": loss, "real_minus_fake": (real.mean() - fake.mean()).detach()}


def edge_error(error_B3HW: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring errors, over rows, columns and three scales."""
    total = error_B3HW.new_zeros(())
    for _ in range(3):
        total = total + error_B3HW.diff(dim=-1).abs().mean() + error_B3HW.diff(dim=-2).abs().mean()
        error_B3HW = F.avg_pool2d(error_B3HW, 2)
    return total / 3


def _balance(reconstruction: Tensor, fooled: Tensor, last_layer: nn.Parameter) -> Tensor:
    """Ratio of the gradients' norms at the decoder's last layer (VQGAN, equation 7)."""
    (ours,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (theirs,) = torch.autograd.grad(fooled, last_layer, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-6)).clamp(0.0, 1e4).detach()


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches [B, 1, H / 4, W / 4], in the manner of pix2pix (arXiv 1611.07004)."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def layer(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(channels_in, channels_out, 4, stride, 1, bias=False)
            return [conv, nn.GroupNorm(1, channels_out), nn.LeakyReLU(0.2)]

        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            *layer(width, 2 * width, 2),
            *layer(2 * width, 4 * width, 1),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.layers(_RANGE * images_B3HW - 1)


_VGG_WIDTHS: tuple[tuple[int, ...], ...] = (
    (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
)  # fmt: skip
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class PerceptualFeatures:
    """Distance between unit features of VGG16's five blocks (Zhang et al., arXiv 1801.03924, "baseline").

    Not a module: its weights are neither trained nor saved. Not implemented: the learned weights per channel
    of LPIPS.

    Args:
        path: state dict in torchvision's layout, of the whole network or of `features` alone.

    Errors: ValueError for a file of another network.
    """

    def __init__(self, path: Path) -> None:
        state = read_tensors(path)
        self._blocks = [[] for _ in _VGG_WIDTHS]  # type: list[list[tuple[Tensor, Tensor]]]
        place, channels = 0, 3
        for block, widths in zip(self._blocks, _VGG_WIDTHS, strict=True):
            for width in widths:
                block.append(_convolution(state, place, (width, channels, 3, 3), path))
                place, channels = place + 2, width
            place += 1

    def __deepcopy__(self, memo: dict[int, object]) -> "PerceptualFeatures":
        return self

    def distance(self, images_B3HW: Tensor, others_B3HW: Tensor) -> Tensor:
        """Mean over images of the summed distances; a scalar."""
        mean, deviation = (torch.tensor(v, device=images_B3HW.device)[:, None, None] for v in _IMAGENET)
        x = (torch.cat([images_B3HW, others_B3HW]) - mean) / deviation
        total = x.new_zeros(())
        for number, block in enumerate(self._blocks):
            x = F.max_pool2d(x, 2) if number else x
            for weight, bias in block:
                x = F.relu(F.conv2d(x, weight.to(x), bias.to(x), padding=1))
            first, second = F.normalize(x, dim=1).chunk(2)
            total = total + (first - second).square().sum(1).mean()
        return total


def _convolution(
    state: Mapping[str, Tensor], place: int, shape: tuple[int, ...], path: Path
) -> tuple[Tensor, Tensor]:
    for prefix in ("features.", ""):
        weight, bias = (state.get(f"{prefix}{place}.{name}") for name in ("weight", "bias"))
        if weight is not None and bias is not None and tuple(weight.shape) == shape:
            return weight.float(), bias.float()
    raise ValueError(f"{path} is no VGG16: it has no convolution features.{place} of shape {shape}")
