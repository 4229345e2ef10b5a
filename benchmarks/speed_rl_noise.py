"""How loud the noise of Speed-RL's gradients is, and which decode steps make it.

    python benchmarks/speed_rl_noise.py --rounds 16 --set training.precision=no

Rounds of images by the base of a recipe, as its first round draws them, and the gradient of the objective
(without the divergence) from the tokens of each decode step alone. The mean cosine of two rounds' gradients
is the share of a round's squared gradient that rounds agree on; its error is that of the jackknife over
rounds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftmask.cli import measure
from swiftmask.cli.overrides import override
from swiftmask.cli.progress import counting
from swiftmask.core.writing import write_text
from swiftmask.methods.speed_rl import Prompts, Rounds, SpeedRLTrainer
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.methods.speed_rl.training import Lesson
from swiftmask.recipes.conditions import Start
from swiftmask.recipes.speed_rl import SpeedRLRecipe
from swiftmask.registry import recipe_module


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the gradients that some tokens give.

    Attributes:
        tokens: which ones.
        num_tokens: of an image.
        power_share: their mean squared gradient, in parts of all tokens' together.
        cosine, error: mean over pairs of rounds, and its standard error.
    """

    tokens: str
    num_tokens: int
    power_share: float
    cosine: float
    error: float


def gradients(recipe: SpeedRLRecipe, num_rounds: int) -> tuple[Tensor, list[int]]:
    """Of every round and step, [R, S, P], and how many tokens each step decides."""
    start = Start.of(recipe)
    base: Any = start.read().model
    steps, config = recipe.planned(base)
    trainer = SpeedRLTrainer(base, config)
    prompts = Prompts(start.conditions(base).listed(recipe.num_captions))
    scorers = recipe.scorers(base, prompts, *recipe.entries(), asked=start.asked)
    rounds = Rounds(trainer, prompts, scorers, recipe.training)
    found = []
    with counting("rounds", num_rounds, unit="rounds") as advance:
        for number in range(num_rounds):
            lessons = rounds.batch(number, 0, 1).lessons
            found.append(torch.stack([_gradient(trainer, lessons, step) for step in range(steps)]))
            advance(1, str(number))
    schedule = lessons[0].replay.schedule
    return torch.stack(found), [step.num_masked_before - step.num_masked_after for step in schedule]


def _gradient(trainer: SpeedRLTrainer, lessons: Sequence[Lesson], step: int) -> Tensor:
    scorer = trainer.scorer(None)
    loss = torch.zeros(())
    for lesson in lessons:
        alone = replace(lesson.replay, schedule=(lesson.replay.schedule[step],))
        weights_B1 = (lesson.weights_B * lesson.advantages_B)[:, None]
        loss = loss - (weights_B1 * scorer(alone).log_prob_BL).sum()
    parameters = list(trained_parameters(trainer.policy).values())
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def agreements(gradients_RSP: Tensor, counts: list[int]) -> list[Agreement]:
    """Of each step, of all steps, and of all but the last. Errors: ValueError if there are no gradients."""
    last = len(counts) - 1
    groups = {f"step {step + 1} of {last + 1}": [step] for step in range(last + 1)}
    groups |= {"all steps": list(range(last + 1)), "all but the last": list(range(last))}
    whole = gradients_RSP.sum(1).square().sum(-1).mean()
    if not whole:
        raise ValueError("the rewards of every group are equal: there is nothing to learn, and no gradient")
    rows = []
    for name, steps in groups.items():
        gradient_RP = gradients_RSP[:, steps].sum(1)
        products_RR = gradient_RP @ gradient_RP.T
        power = products_RR.diagonal().mean()
        cosine, error = jackknife(products_RR)
        counted = sum(counts[step] for step in steps)
        rows.append(Agreement(name, counted, float(power / whole), cosine, error))
    return rows


def jackknife(products_RR: Tensor) -> tuple[float, float]:
    """Mean product of two different rounds over the mean square of one, and its standard error."""
    count = len(products_RR)
    rest = [torch.tensor([i for i in range(count) if i != left]) for left in range(count)]
    without = torch.stack([_cosine(products_RR[some][:, some]) for some in rest])
    variance = (count - 1) / count * (without - without.mean()).square().sum()
    return float(_cosine(products_RR)), float(variance.sqrt())


def _cosine(products_RR: Tensor) -> Tensor:
    count, squares = len(products_RR), products_RR.diagonal().sum()
    return (products_RR.sum() - squares) / (count * (count - 1)) / (squares / count)


def markdown(rows: list[Agreement]) -> str:
    lines = [
        "| tokens | an image | share of the squared gradient | cosine of two rounds |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.tokens} | {row.num_tokens} | {row.power_share:.3f} | {row.cosine:.4f} ± {row.error:.4f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="meissonic-scenes-speed-rl")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings, as in speed_rl.sampling.temperature=1"
    )
    parser.add_argument("--json", type=Path, default=Path("speed-rl-noise.json"), help="the table beside it")
    chosen = parser.parse_args()
    recipe = override(recipe_module(chosen.recipe).recipe(), chosen.set)
    # The filter has seen nothing before the first round, and nothing is held to a reference here.
    recipe = override(recipe, ["speed_rl.filter.percentile=0", f"speed_rl.step_counts={recipe.steps}"])
    rows = agreements(*gradients(recipe, chosen.rounds))
    origin = measure.origin(chosen.recipe, " ".join(["python", *sys.argv]))
    content = {**asdict(origin), "rounds": chosen.rounds, "rows": [asdict(row) for row in rows]}
    write_text(chosen.json, json.dumps(content, indent=2) + "\n")
    write_text(chosen.json.with_suffix(".md"), markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
