"""How much changes from one decode step to the next: what a shortcut has to predict.

    python benchmarks/step_change.py maskgit-scenes meissonic-emoji --prompts emoji/prompts-trained.jsonl

A model of Scenes is asked for Scenes; `--prompts` is for the others. Of every step after the first, the table
has the squared difference of its features from those of the step before, relative to their squares, and
the Kullback-Leibler divergence of a token that the step decides if the head reads the old features.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.api import load
from swiftmask.cli.asked import Asked
from swiftmask.cli.scoring import requests_of, scenes_of
from swiftmask.evaluate.requests import in_batches
from swiftmask.evaluate.tuning.feature_drift import DISTANCES, record_decode
from swiftmask.pipeline import Pipeline


def changes(pipeline: Pipeline, asked: Asked, steps: int, images: int, batch: int) -> dict[str, Tensor]:
    """Mean change at each of the steps 2 to N, [N - 1], by the name of the distance."""
    requests = requests_of(pipeline, asked)
    entries, seeds = requests.asked(0, images), requests.seeds(0, images)
    schedule = pipeline.schedule(steps)
    found: dict[str, list[Tensor]] = {name: [] for name in DISTANCES}
    for places in in_batches(range(images), batch):
        decoded = record_decode(
            pipeline.model, [entries[i] for i in places], [seeds[i] for i in places], schedule
        )
        pairs = list(pairwise(decoded.records))
        for name, distance in DISTANCES.items():
            before = [distance(pipeline.model, now, last.features.features_GBTD) for last, now in pairs]
            found[name].append(torch.tensor(before))
    return {name: torch.stack(each).mean(0) for name, each in found.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="models that generate codes")
    parser.add_argument("--prompts", type=Path, help="for models that do not generate Scenes")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=48, help="a divisor of --images")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    print("| model | tokens | features, mean | at step 2 | in the middle | at the last | nats a token |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen.models:
        pipeline = load(name, device="cpu")
        asked = Asked() if scenes_of(pipeline) else Asked(prompts=chosen.prompts)
        of = changes(pipeline, asked, chosen.steps, chosen.images, chosen.batch)
        features, tokens = (of[key] for key in DISTANCES)
        decided = sum(step.num_decided for step in pipeline.schedule(chosen.steps)[1:])
        shown = (features.mean(), features[0], features[len(features) // 2], features[-1])
        cells = [f"{float(value):.3f}" for value in shown] + [f"{float(tokens.sum()) / decided:.2f}"]
        print(f"| {name} | {pipeline.model.spec.num_tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
