"""A scorer is a value: what it reads from an image, and what follows from the readings of many.

    RewardScorer      images with prompts to one score each (CLIP, PickScore, HPS, aesthetic, HTTP, your own)
    FeatureScorer     images to features of any extractor, with distances to real images
    TokenScorer, PixelScorer
                      what is measured against the unaccelerated images of the same seeds
    SceneScorer       Scenes' judge (scenes_scorer.py)

A study reads every image once, for all scorers (study.py), and keeps the readings.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.data.images.pixels import to_bytes
from swiftmask.evaluate.extractors import Extractor, Identity, Readings
from swiftmask.evaluate.feature_store import FeatureStore
from swiftmask.evaluate.folder_metrics import (
    KINDS,
    FeatureSample,
    Found,
    MetricSettings,
    compared,
    floor_of,
)
from swiftmask.evaluate.quantities import Quantity
from swiftmask.evaluate.requests import VARIATIONS
from swiftmask.evaluate.statistics import Moments

_LOWER_IS_BETTER = ("fd", "kid")


@dataclass(frozen=True, slots=True)
class Generated:
    """Images [B, 3, H, W] in [0, 1], their tokens [B, L] or [B, L, C], and the token decode's seconds."""

    images_B3HW: Tensor
    tokens_BL: Tensor
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Readings of the images of one row under one evaluation seed.

    Attributes:
        own: of the images that are scored.
        varied: of further images, `VARIATIONS` in a line of each of some prompts; None without them.
        reference: of the unaccelerated images of the same seeds; None for a row without a reference.
    """

    seed: int
    own: Readings
    varied: Readings | None = None
    reference: Readings | None = None


class Scorer(Protocol):
    """What a study measures.

    Attributes:
        identity: name, and a hash of all that decides the readings (weights).
        quantities: keys of what `values` may give.
        note: what a reader of the table must know.
    """

    @property
    def identity(self) -> Identity: ...
    @property
    def quantities(self) -> tuple[Quantity, ...]: ...
    @property
    def note(self) -> str: ...

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        """One row per image, on the CPU; what was asked for is one class or prompt each."""
        ...

    def values(self, images: Images) -> dict[str, float]:
        """By the key of a quantity; without what these images do not give."""
        ...

    def floors(self, seed: int, count: int) -> dict[str, float]:
        """The same of real images, where there are some."""
        ...


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """Mean score of a reward.

    Attributes:
        reward: `(images_B3HW, classes or prompts) -> scores_B`, NaN where it does not apply.
    """

    identity: Identity
    reward: Callable[[Tensor, Sequence[Any]], Any]

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        name = self.identity.name
        return (Quantity(key=name, label=name, higher_is_better=True, compared=True),)

    @property
    def note(self) -> str:
        return f"{self.identity.name}: mean score."

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        scores = self.reward(generated.images_B3HW, asked)
        return {"scores": torch.as_tensor(scores).detach().double().cpu()}

    def values(self, images: Images) -> dict[str, float]:
        """Errors: ValueError where the reward applies to no image."""
        mean = images.own["scores"].nanmean().item()
        if math.isnan(mean):
            raise ValueError(f"{self.identity.name} gave no image a score")
        return {self.identity.name: mean}

    def floors(self, seed: int, count: int) -> dict[str, float]:
        return {}


@dataclass(frozen=True, slots=True)
class FeatureScorer:
    """Distances to real images in the features of an extractor; the Fréchet distance comes first.

    Attributes:
        real: features of real images, or their mean and covariance.
        source: what the real images are called.
        diverse: whether the study has further images of some prompts.
        against_reference: whether some rows have a reference.
        brief: the Fréchet distance alone, where many rows are compared.
    """

    extractor: Extractor
    real: FeatureStore | Moments
    source: str
    settings: MetricSettings = MetricSettings()
    diverse: bool = False
    against_reference: bool = False
    brief: bool = False
    _known: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def identity(self) -> Identity:
        return self.extractor.identity

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        kinds = ("fd", "is") if self.brief else KINDS
        metrics = [
            Quantity(
                key=self.identity.metric(kind),
                label=self.identity.metric(kind),
                higher_is_better=kind not in _LOWER_IS_BETTER,
                compared=kind == "fd",
            )
            for kind in kinds
        ]
        others = (
            ("diversity", self.diverse, True),
            ("difference", self.against_reference, False),
        )
        return tuple(metrics) + tuple(
            Quantity(
                key=f"{kind}_{self.identity.name}", label=f"{kind}_{self.identity.name}", higher_is_better=up
            )
            for kind, wanted, up in others
            if wanted
        )

    @property
    def note(self) -> str:
        number = "an unknown number of" if self.real.count is None else self.real.count
        name = self.identity.name
        parts = [
            f"Features: {name}, sha256 {self.identity.sha256[:12]}, against {number} real images "
            f"({self.source}). Most of these metrics depend on N, so compare equal N only."
        ]
        if self.against_reference:
            parts.append(
                f"difference_{name}: 1 - cosine to the full model's images of the same seeds and steps."
            )
        if self.diverse:
            parts.append(f"diversity_{name}: 1 - cosine between images of one prompt.")
        return " ".join(parts)

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        return self.extractor(generated.images_B3HW.float())

    def values(self, images: Images) -> dict[str, float]:
        ours = FeatureSample.of(images.own)
        values = self._named(compared(ours, self._real(), self.identity, self.settings))
        name = self.identity.name
        if images.reference is not None:
            cosine_X = F.cosine_similarity(ours.features_XD, images.reference["features"], dim=1)
            values[f"difference_{name}"] = 1 - cosine_X.double().mean().item()
        if images.varied is not None:
            values[f"diversity_{name}"] = diversity(images.varied["features"])
        return values

    def floors(self, seed: int, count: int) -> dict[str, float]:
        if count not in self._known:
            real = self._real()
            found: Found = {}
            if isinstance(real, FeatureSample):
                found, _ = floor_of(real, count, self.identity, self.settings)
            self._known[count] = self._named(found)
        return self._known[count]

    def _real(self) -> FeatureSample | Moments:
        if isinstance(self.real, Moments):
            return self.real
        if "real" not in self._known:
            self._known["real"] = (
                self.real.moments() if self.brief else FeatureSample.of(self.real.readings())
            )
        return self._known["real"]

    def _named(self, found: Found) -> dict[str, float]:
        return {self.identity.metric(kind): value for kind, (value, _) in found.items()}


@dataclass(frozen=True, slots=True)
class TokenScorer:
    """Share of codes equal to those of the unaccelerated decode of the same seeds and steps."""

    identity: Identity = Identity("tokens", "")
    quantities: tuple[Quantity, ...] = (
        Quantity(key="tokens_kept", label="tokens kept", higher_is_better=True),
    )
    note: str = "Tokens kept: share equal to the full model's at the same steps."

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        return {"tokens": generated.tokens_BL.cpu().to(torch.int32)}

    def values(self, images: Images) -> dict[str, float]:
        if images.reference is None:
            return {}
        same_XL = images.own["tokens"] == images.reference["tokens"]
        return {"tokens_kept": same_XL.double().mean().item()}

    def floors(self, seed: int, count: int) -> dict[str, float]:
        return {}


@dataclass(frozen=True, slots=True)
class PixelScorer:
    """Difference in pixels from the unaccelerated images of the same seeds and steps. Keeps all pixels."""

    identity: Identity = Identity("pixels", "")
    quantities: tuple[Quantity, ...] = (
        Quantity(key="pixel_difference", label="pixel difference", higher_is_better=False),
    )
    note: str = "Pixel difference: root mean square, of pixels from 0 to 1, to the full model's images."

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        return {"pixels": to_bytes(generated.images_B3HW).cpu()}

    def values(self, images: Images) -> dict[str, float]:
        if images.reference is None:
            return {}
        pairs = zip(images.own["pixels"], images.reference["pixels"], strict=True)
        squares = [F.mse_loss(ours.float(), theirs.float()).item() / 255**2 for ours, theirs in pairs]
        return {"pixel_difference": sum(square**0.5 for square in squares) / len(squares)}

    def floors(self, seed: int, count: int) -> dict[str, float]:
        return {}


def diversity(features_XD: Tensor) -> float:
    """How varied the images of a prompt are: mean of 1 - cosine over pairs, mean over prompts.

    0 where all are the same. Reward tuning tends to lower it while scores rise.

    Args:
        features_XD: `VARIATIONS` rows in a line for each prompt.
    """
    unit_PKD = F.normalize(features_XD.double(), dim=-1).unflatten(0, (-1, VARIATIONS))
    first, second = torch.triu_indices(VARIATIONS, VARIATIONS, offset=1)
    return 1 - (unit_PKD[:, first] * unit_PKD[:, second]).sum(dim=-1).mean().item()
