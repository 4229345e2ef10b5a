"""How far predicted features drift from the true ones, measured along one run of the full model.

From every step i the feature function predicts all later steps in a chain, as it would after a full step at i
with no other, on the canvases and tokens of the full run. A segment's drift then depends on where it starts
alone, which is what makes the best placement of full steps an exact dynamic program (placement.py). Functions
that look further back than the last full step (extrapolation, ML-Cache) have no such drift and are refused.

Two ways to say how far: in the features themselves, or in the tokens that the head would draw from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import Condition, FeatureFn, MaskedGenerator
from swiftmask.core.rng import SeededNoise
from swiftmask.core.tokens import CategoricalTokens
from swiftmask.core.types import Record, Schedule


@dataclass(frozen=True, slots=True)
class Recording:
    """A decode of the full model, with the features of every step."""

    model: MaskedGenerator
    condition: Condition
    records: list[Record]


Distance = Callable[[MaskedGenerator, Record, Tensor], float]
"""`distance(model, true, features_GBTD)`: from the features of a recorded step to predicted ones."""


def record_decode(
    model: MaskedGenerator, asked: Sequence[Any], seeds: Sequence[int], schedule: Schedule
) -> Recording:
    """Generate one image per label or prompt with every step full, and keep everything about it."""
    noise = SeededNoise(seeds, model.spec.num_tokens, model.device)
    canvas = model.blank(len(asked))
    records: list[Record] = []
    with torch.no_grad():
        condition = prepare_condition(model, model.encode(asked), schedule)
        decode(
            model,
            condition,
            [replace(step, full=True) for step in schedule],
            noise,
            canvas=canvas,
            features_fn=FullFeatures(model),
            unmask=model.unmask_rule(canvas, noise),
            on_step=records.append,
        )
    return Recording(model, condition, records)


def drift(features_fn: FeatureFn, recording: Recording, distance: Distance) -> Tensor:
    """Drift at step s (column) of features predicted from a full step i (row): float64 [S, S], zero for
    s <= i.

    Errors: ValueError for a feature function that remembers more than the last features.
    """
    _require_memoryless(features_fn, recording)
    num_steps = len(recording.records)
    drift_SS = torch.zeros(num_steps, num_steps, dtype=torch.float64)
    with torch.no_grad():
        for start in range(num_steps - 1):
            drift_SS[start, start + 1 :] = _drift_from(features_fn, recording, distance, start)
    return drift_SS


def feature_distance(model: MaskedGenerator, true: Record, features_GBTD: Tensor) -> float:
    """Squared error of the features, relative to the squares of the true ones."""
    true_GBTD = true.features.features_GBTD.float()
    return float((features_GBTD.float() - true_GBTD).square().sum() / true_GBTD.square().sum())


def token_distance(model: MaskedGenerator, true: Record, features_GBTD: Tensor) -> float:
    """Kullback-Leibler divergence, in nats an image, of the codes that the step decides: its mean over the
    masked positions, times how many are decided.

    Summed over steps it is, by the chain rule, how far two whole decodes are apart, where the steps differ in
    features alone.

    Errors: ValueError for a head that generates no codes.
    """
    true_BMV = _log_probs(model, true, true.features.features_GBTD)
    found_BMV = _log_probs(model, true, features_GBTD)
    divergence_BM = (true_BMV.exp() * (true_BMV - found_BMV)).sum(dim=-1)
    return float(divergence_BM.mean()) * true.step.num_decided


DISTANCES: dict[str, Distance] = {"feature-drift": feature_distance, "token-drift": token_distance}
"""Placements that are optimised for a measured drift, and what is measured."""


def _log_probs(model: MaskedGenerator, record: Record, features_GBTD: Tensor) -> Tensor:
    """Of the codes at the positions still masked, as the step samples them: [B, M, V]."""
    step = record.step
    tokens = model.tokens(features_GBTD, record.before.masked_positions(), step.guidance)
    if not isinstance(tokens, CategoricalTokens):
        raise ValueError(f"{model.spec.name} generates no codes: measure the drift of its features")
    return (tokens.logits_BMV / step.temperature).log_softmax(-1)


def _drift_from(features_fn: FeatureFn, recording: Recording, distance: Distance, start: int) -> Tensor:
    """Of every step after `start`, whose features are the true ones."""
    previous, found = recording.records[start], []
    for true in recording.records[start + 1 :]:
        step = replace(true.step, full=False)
        features = features_fn(true.before, recording.condition, step, previous)
        found.append(distance(recording.model, true, features.features_GBTD))
        previous = replace(true, features=features)
    return torch.tensor(found, dtype=torch.float64)


def _require_memoryless(features_fn: FeatureFn, recording: Recording) -> None:
    first = recording.records[0]
    with torch.no_grad():
        carry = features_fn(first.before, recording.condition, first.step, None).carry
    if carry is not None:
        raise ValueError(
            f"{features_fn.name} looks further back than the last full step, so that the drift of a segment "
            "depends on the ones before it: optimise the placement of a shortcut or of reuse"
        )
