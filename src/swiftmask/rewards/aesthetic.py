"""The LAION aesthetic predictor: how pleasing an image is, about 1 to 10, whatever its prompt.

LAION-Aesthetics V2 (Schuhmann et al., arXiv 2210.08402): five linear maps on the unit embedding of CLIP
ViT-L/14. There is no activation between them, so they are one linear map here. Left out: the dropout of their
training. Differentiable in the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.files import require_keys, weights_like
from swiftmask.core.reading import State, read_tensors, some
from swiftmask.rewards.clip import CLIP_LARGE, ClipSimilarity, check_images, load_clip_score

WEIGHTS_FILE = "sac+logos+ava1-l14-linearMSE.pth"

_LINEARS = (0, 2, 4, 6, 7)
"""Places of the linear maps in the released module; the others are dropout."""


@dataclass(frozen=True, slots=True)
class LinearMap:
    """`embedding . weight_D + bias`, both float32."""

    weight_D: Tensor
    bias: Tensor

    def __call__(self, embedding_BD: Tensor) -> Tensor:
        """`[B]`."""
        device = embedding_BD.device
        # No matrix product: an autocast would round scores about 5 in steps of 0.03.
        return (embedding_BD * self.weight_D.to(device)).sum(dim=-1) + self.bias.to(device)


@dataclass(frozen=True, slots=True)
class AestheticScore:
    """`similarity` is that of CLIP ViT-L/14; a CLIP score may hold the same one."""

    similarity: ClipSimilarity
    head: LinearMap

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scores_B`, float32. Gradients flow into the images; the prompts do not matter."""
        check_images(images_B3HW, prompts)
        return self.head(self.similarity.embed_images(images_B3HW))


def load_aesthetic(
    weights: str | Path, *, clip: str | Path = CLIP_LARGE, dtype: torch.dtype = torch.float32
) -> AestheticScore:
    """The predictor of a released file, on a CLIP of a local folder or Hugging Face repository.

    Args:
        weights: `sac+logos+ava1-l14-linearMSE.pth`, or the folder it is in.
        clip: CLIP ViT-L/14, as `load_clip_score` takes it.
        dtype: of the CLIP weights.

    Errors: FileNotFoundError or ValueError naming what is missing, damaged or does not fit, and the mend.
    """
    head = read_head(weights)
    similarity = load_clip_score(clip, dtype=dtype).similarity
    expected, got = len(head.weight_D), similarity.model.config.projection_dim
    if got != expected:
        raise ValueError(
            f"{weights} and {clip} do not belong together: the predictor reads embeddings of width "
            f"{expected}, the CLIP model makes {got}"
        )
    return AestheticScore(similarity, head)


def read_head(weights: str | Path) -> LinearMap:
    """The five maps of a released file as one.

    Errors: FileNotFoundError; ValueError naming keys that are missing or too many, or the map that does not
    fit the next.
    """
    path = Path(weights).expanduser()
    path = path / WEIGHTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no aesthetic predictor at {path}: download {WEIGHTS_FILE} of the GitHub repository "
            "christophschuhmann/improved-aesthetic-predictor and give its path"
        )
    state = read_tensors(path)
    _check_keys(state, str(path))
    return _fold(state, str(path))


def _check_keys(state: State, source: str) -> None:
    axes = (("weight", 2), ("bias", 1))
    keys = {f"layers.{place}.{part}": count for place in _LINEARS for part, count in axes}
    require_keys(state, keys, source, f"the linear aesthetic predictor ({WEIGHTS_FILE})")
    unexpected = sorted(set(state) - set(keys))
    if unexpected:
        raise ValueError(f"{source} is not {WEIGHTS_FILE}: it has more than five maps: {some(unexpected)}")


def _fold(state: State, source: str) -> LinearMap:
    """From the last map back to the first, in double precision."""
    row_1D, offset_1 = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for place in reversed(_LINEARS):
        weight, bias = (
            weights_like(row_1D, state[f"layers.{place}.{part}"], source=f"{source}: layers.{place}.{part}")
            for part in ("weight", "bias")
        )
        if len(weight) != row_1D.shape[1] or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{source} is damaged: expected layers.{place} to make {row_1D.shape[1]} numbers, got weight "
                f"{tuple(weight.shape)} and bias {tuple(bias.shape)}"
            )
        offset_1, row_1D = offset_1 + row_1D @ bias, row_1D @ weight
    return LinearMap(row_1D[0].float(), offset_1[0].float())
