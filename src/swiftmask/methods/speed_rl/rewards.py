"""What a picture is worth: scores of several judges of quality, and a bonus for few decode steps.

    normalize_then_sum: quality = sum_m weight_m z(score_m), z within the group (TRL, after GDPO)
    sum_then_normalize: quality = sum_m weight_m score_m (TRL's default)

    additive:           reward = quality + weight speed
    multiplicative:     reward = quality (reference / steps)^weight
    gated:              additive, but only for the better half of the group in quality

Speed-RL (arXiv 2512.01094) adds a speed reward to a quality reward; its form is not in the published part.
If all pictures of a group take the same number of steps, an additive bonus cancels in the advantage.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.methods.speed_rl.advantages import STD_OFFSET

Aggregation = Callable[[Tensor, Tensor], Tensor]
"""`aggregate(scores_MPK, weights_M) -> quality_PK`; a NaN score does not apply and counts for nothing."""


def weighted_sum(scores_MPK: Tensor, weights_M: Tensor) -> Tensor:
    """Scores in their own units."""
    return (weights_M[:, None, None] * scores_MPK).nansum(0)


def weighted_sum_of_z_scores(scores_MPK: Tensor, weights_M: Tensor) -> Tensor:
    """Every judge with a spread of one within the group, so that none drowns in another's units."""
    applies_MPK = ~scores_MPK.isnan()
    count_MP1 = applies_MPK.sum(-1, keepdim=True)
    centred_MPK = scores_MPK - scores_MPK.nanmean(-1, keepdim=True)
    variance_MP1 = centred_MPK.square().nansum(-1, keepdim=True) / (count_MP1 - 1).clamp(min=1)
    return weighted_sum(centred_MPK / (variance_MP1.sqrt() + STD_OFFSET), weights_M)


AGGREGATIONS: dict[str, Aggregation] = {
    "sum_then_normalize": weighted_sum,
    "normalize_then_sum": weighted_sum_of_z_scores,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """Settings of the speed reward.

    Attributes:
        form: how it meets the quality, a name in `SPEED_FORMS`.
        shape: how it falls with the number of steps, a name in `SPEED_SHAPES`.
        weight: its factor (or exponent, where multiplicative); 0 turns it off.
        fastest, slowest: steps between which it falls from 1 to 0.
        reference: steps that `hinge` asks for, and that leave a multiplicative reward as it is.
    """

    form: str = "additive"
    shape: str = "linear"
    weight: float = 0.1
    fastest: int = 8
    slowest: int = 24
    reference: int = 16

    def __post_init__(self) -> None:
        for key, table in (("form", SPEED_FORMS), ("shape", SPEED_SHAPES)):
            if (name := getattr(self, key)) not in table:
                raise ValueError(f"speed.{key} must be one of {', '.join(table)}, got {name!r}")
        check_fields(self)
        if not self.fastest <= self.reference < self.slowest:
            raise ValueError(
                "expected speed.fastest <= speed.reference < speed.slowest, "
                f"got {self.fastest}, {self.reference} and {self.slowest}"
            )


SpeedShape = Callable[[Tensor, SpeedConfig], Tensor]
"""`shape(steps_PK, config) -> speed_PK`, nominally in [0, 1]."""

SpeedForm = Callable[[Tensor, Tensor, SpeedConfig], Tensor]
"""`form(quality_PK, steps_PK, config) -> reward_PK`."""


def linear(steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """1 - (N - N_min) / (N_max - N_min)."""
    return 1 - (steps_PK - config.fastest) / (config.slowest - config.fastest)


def inverse(steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """N_min / N: what a picture saves in time."""
    return config.fastest / steps_PK


def logarithmic(steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """1 - log(N / N_min) / log(N_max / N_min)."""
    span = torch.tensor(config.slowest / config.fastest).log()
    return 1 - (steps_PK / config.fastest).log() / span.to(steps_PK.device)


def hinge(steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """1 up to the reference, then linear: nothing is gained by going below it."""
    return ((config.slowest - steps_PK) / (config.slowest - config.reference)).clamp(max=1)


SPEED_SHAPES: dict[str, SpeedShape] = {
    "linear": linear,
    "inverse": inverse,
    "log": logarithmic,
    "hinge": hinge,
}


def speed_reward(steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """The bonus of each picture, float32 within [0, 1]."""
    return SPEED_SHAPES[config.shape](steps_PK.float(), config).clamp(0, 1)


def additive(quality_PK: Tensor, steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    return quality_PK + config.weight * speed_reward(steps_PK, config)


def multiplicative(quality_PK: Tensor, steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """Weighs a picture's quality by its budget: keeps its meaning where the budget is drawn, not chosen."""
    return quality_PK * (config.reference / steps_PK.float()) ** config.weight


def gated(quality_PK: Tensor, steps_PK: Tensor, config: SpeedConfig) -> Tensor:
    """A bonus only from the group's median quality upwards: fast and bad earns nothing."""
    good_PK = quality_PK >= quality_PK.median(dim=1, keepdim=True).values
    return torch.where(good_PK, additive(quality_PK, steps_PK, config), quality_PK)


SPEED_FORMS: dict[str, SpeedForm] = {
    "additive": additive,
    "multiplicative": multiplicative,
    "gated": gated,
}


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of the pictures of a round, by prompt and sample.

    Attributes:
        raw_PK: weighted sum of the scores in their own units: what is filtered by and logged.
        speed_PK: the bonus for few steps, before its weight.
        total_PK: quality and speed together, what advantages are made from.
    """

    raw_PK: Tensor
    speed_PK: Tensor
    total_PK: Tensor


def combine(
    scores_MPK: Tensor, weights_M: Tensor, steps_PK: Tensor, *, aggregate: Aggregation, speed: SpeedConfig
) -> Rewards:
    """Scores of M judges and step counts to rewards."""
    total_PK = SPEED_FORMS[speed.form](aggregate(scores_MPK, weights_M), steps_PK, speed)
    return Rewards(weighted_sum(scores_MPK, weights_M), speed_reward(steps_PK, speed), total_PK)
