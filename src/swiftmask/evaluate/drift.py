"""How far accelerated pictures drift from the unaccelerated ones of the same seeds, and how varied they are.

Drift is no quality: a picture may differ from its reference and be as good. It says how much of a change in
quality can come from the method at all, and needs far fewer pictures than a distance between distributions.
Everything is per picture (or per prompt), so that the caller can report a spread.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW, _SIGMA = 11, 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2
"""SSIM's window and its two constants for a range of 1 (Wang et al., 2004, section III.C)."""


def token_agreement(tokens_BL: Tensor, reference_BL: Tensor) -> Tensor:
    """Share of the positions with the reference's code: float64 [B].

    Errors: ValueError for different shapes, or for real-valued tokens, which are never quite the same.
    """
    _require_same_shape(tokens_BL, reference_BL, "tokens", axes=2)
    if tokens_BL.is_floating_point() or reference_BL.is_floating_point():
        raise ValueError("real-valued tokens are never quite the same: compare images (ssim) or features")
    return (tokens_BL == reference_BL).double().mean(dim=1)


def ssim(images_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
    """Structural similarity of pictures in [0, 1] to their references: float64 [B], 1 for equal ones.

    Wang et al. (2004), eq. 13: Gaussian window of 11 pixels, sigma 1.5, each colour for itself, averaged over
    the places where the window fits.

    Errors: ValueError for different shapes, or pictures smaller than the window.
    """
    _require_same_shape(images_B3HW, reference_B3HW, "pictures", axes=4)
    if min(images_B3HW.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {_WINDOW}x{_WINDOW} pixels, got {tuple(images_B3HW.shape)}"
        )
    x_B3HW, y_B3HW = images_B3HW.double(), reference_B3HW.double()
    mean_x, mean_y = _smooth(x_B3HW), _smooth(y_B3HW)
    variances = _smooth(x_B3HW.square() + y_B3HW.square()) - mean_x.square() - mean_y.square()
    covariance = _smooth(x_B3HW * y_B3HW) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _LUMINANCE) / (mean_x.square() + mean_y.square() + _LUMINANCE)
    structure = (2 * covariance + _CONTRAST) / (variances + _CONTRAST)
    return (luminance * structure).mean(dim=(1, 2, 3))


def feature_cosine(features_BD: Tensor, reference_BD: Tensor) -> Tensor:
    """Cosine between the features of pictures and of their references: float64 [B].

    Errors: ValueError for different shapes.
    """
    _require_same_shape(features_BD, reference_BD, "features", axes=2)
    return F.cosine_similarity(features_BD.double(), reference_BD.double(), dim=1)


def diversity(features_PKD: Tensor) -> Tensor:
    """How varied the K pictures of each prompt are: mean of 1 - cosine over pairs, float64 [P].

    0 where all are the same. Reward tuning tends to lower it while scores rise.

    Errors: ValueError for another shape, or fewer than two pictures a prompt.
    """
    if features_PKD.ndim != 3 or features_PKD.shape[1] < 2:
        raise ValueError(
            "diversity within prompt needs features [prompts, images, width] with at least 2 images of "
            f"each prompt, got {tuple(features_PKD.shape)}"
        )
    unit_PKD = F.normalize(features_PKD.double(), dim=-1)
    num_pictures = features_PKD.shape[1]
    first, second = torch.triu_indices(num_pictures, num_pictures, offset=1)
    return 1 - (unit_PKD[:, first] * unit_PKD[:, second]).sum(dim=-1).mean(dim=1)


def _smooth(images_B3HW: Tensor) -> Tensor:
    """Gaussian mean over each window that fits, [B, 3, H - 10, W - 10]."""
    offset = torch.arange(_WINDOW, dtype=images_B3HW.dtype, device=images_B3HW.device) - _WINDOW // 2
    weight = (-offset.square() / (2 * _SIGMA**2)).exp()
    weight = (weight / weight.sum()).expand(images_B3HW.shape[1], 1, 1, _WINDOW)
    groups = images_B3HW.shape[1]
    return F.conv2d(F.conv2d(images_B3HW, weight, groups=groups), weight.mT, groups=groups)


def _require_same_shape(first: Tensor, second: Tensor, what: str, *, axes: int) -> None:
    if first.shape != second.shape or first.ndim != axes:
        raise ValueError(
            f"expected {what} and their references in pairs, with {axes} axes, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
