"""The ablations of Speed-RL (arXiv 2512.01094, figures 3 to 5) on Scenes: curves over rounds, PNG and JSON.

    python benchmarks/speed_rl_ablations.py --rounds 24 --set training.learning_rate=4e-4 \\
        prompts=benchmarks/failing_captions.txt

Over all captions a hundred rounds say nothing yet (docs/log.md); over four that the base fails at, two
dozen do.

Each variant is a Speed-RL recipe with the settings of `VARIANTS` changed, trained with every seed. A killed
run continues: trainings resume, and finished ones are only read. `--variants` takes some.

With one update a round the likelihood ratio is 1, and token and sequence level have the same gradient. So
the levels are compared with two passes over each round, and share a baseline of their own.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

from swiftmask.cli import measure
from swiftmask.cli.overrides import override
from swiftmask.core.writing import write_text
from swiftmask.recipes.speed_rl import SpeedRLRecipe
from swiftmask.registry import recipe_module

STEPS = 5
"""Decode steps that are wanted: a third of 16."""

ONE_NUMBER = (f"speed_rl.step_counts={STEPS}", "speed_rl.speed_weight=0")
"""Of all variants that do not say otherwise: as many steps for every image, and so no speed reward."""

SEVERAL_NUMBERS = (f"speed_rl.step_counts={STEPS - 1},{STEPS},{STEPS + 1}",)
SPEED_REWARD = ("speed_rl.speed_weight=0.1",)
"""The paper's, which images of one number of steps would leave without effect."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "several-numbers": SEVERAL_NUMBERS,
    "speed-reward": (*SEVERAL_NUMBERS, *SPEED_REWARD),
    "kl-k3": ("speed_rl.kl_estimator=k3",),
    "no-kl": ("speed_rl.kl_estimator=none",),
    "token-likelihood": ("speed_rl.num_iterations=2",),
    "sequence-likelihood": ("speed_rl.num_iterations=2", "speed_rl.importance_sampling_level=sequence"),
    "filter-0": ("speed_rl.filter.percentile=0",),
    "filter-50": ("speed_rl.filter.percentile=50",),
}
"""What each changes of `ONE_NUMBER`; the cross-entropy divergence and a filter at 25 are the recipe's."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "speed reward": ("baseline", "several-numbers", "speed-reward"),
    "divergence": ("baseline", "kl-k3", "no-kl"),
    "likelihood": ("token-likelihood", "sequence-likelihood"),
    "filter percentile": ("filter-0", "baseline", "filter-50"),
}
"""Which variants answer what: a line of panels each."""

CURVES: dict[str, str] = {
    "rewards/scenes-judge/mean": "held-out judge",
    f"reward_by_steps/{STEPS}": f"training reward at {STEPS} steps",
    "kl": "divergence from the base",
    "diversity": "codes that differ within a prompt",
}
"""What is plotted, of all that a run logs."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A logged value over the rounds of one training."""

    rounds: list[int]
    values: list[float]

    def last(self, share: float = 0.25) -> float:
        """Mean over the last part of the rounds (at least one)."""
        return fmean(self.values[-max(1, round(share * len(self.values))) :])


def configured(name: str, seed: int, chosen: argparse.Namespace) -> SpeedRLRecipe:
    """The recipe of one training."""
    recipe: SpeedRLRecipe = recipe_module(chosen.recipe).recipe()
    base = [] if chosen.base is None else [f"model={chosen.base}"]
    recipe = override(recipe, [*base, "sheets.every=0", *ONE_NUMBER, *chosen.set, *VARIANTS[name]])
    speed_rl = replace(recipe.speed_rl, seed=seed)
    training = replace(
        recipe.training,
        seed=seed,
        num_steps=chosen.rounds * speed_rl.updates_per_round,
        batch_size=speed_rl.generation_batch_size // speed_rl.steps_per_generation,
        log_every=1,
    )
    return replace(recipe, speed_rl=speed_rl, training=training)


def curves(folder: Path, updates_per_round: int) -> dict[str, Curve]:
    """What a training logged, by name; updates of one round are averaged."""
    by_round: dict[str, dict[int, list[float]]] = {name: {} for name in CURVES}
    for line in (folder / "log.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        number = (metrics["step"] - 1) // updates_per_round + 1
        for name in CURVES.keys() & metrics.keys():
            by_round[name].setdefault(number, []).append(metrics[name])
    return {
        name: Curve(sorted(rounds), [fmean(rounds[number]) for number in sorted(rounds)])
        for name, rounds in by_round.items()
        if rounds
    }


def train(name: str, seed: int, chosen: argparse.Namespace) -> dict[str, Curve]:
    """The curves of one training, which is done or continued if it is not finished."""
    recipe, folder = configured(name, seed, chosen), chosen.out / f"{name}-seed{seed}"
    recipe.run(folder)
    return curves(folder, recipe.speed_rl.updates_per_round)


def table(found: Mapping[str, Sequence[dict[str, Curve]]], chosen: argparse.Namespace) -> dict[str, Any]:
    """Curves of every variant and seed, and where they end."""
    variants = [
        {
            "variant": name,
            "settings": VARIANTS[name],
            "last_quarter": {key: [run[key].last() for run in runs if key in run] for key in CURVES},
            "runs": [
                {"seed": seed, "curves": {key: asdict(curve) for key, curve in run.items()}}
                for seed, run in zip(chosen.seeds, runs, strict=True)
            ],
        }
        for name, runs in found.items()
    ]
    origin = measure.origin(chosen.recipe, " ".join(["python", *sys.argv]))
    return {
        **asdict(origin),
        "rounds": chosen.rounds,
        "settings_of_all": chosen.set,
        "plotted": CURVES,
        "variants": variants,
    }


def markdown(content: Mapping[str, Any]) -> str:
    """Where every variant ends, one number a seed."""
    runs = [run["curves"] for one in content["variants"] for run in one["runs"]]
    known = [key for key in CURVES if all(key in curves for curves in runs)]
    first = (fmean(curves[key]["values"][0] for curves in runs) for key in known)
    head = ["variant", "what it changes", *(CURVES[key] for key in known)]
    lines = [
        _line(head),
        "|---" * len(head) + "|",
        _line(["first round of all", "", *(f"{value:.3f}" for value in first)]),
    ]
    for one in content["variants"]:
        settings = ", ".join(f"`{setting}`" for setting in one["settings"])
        ends = (", ".join(f"{value:.3f}" for value in one["last_quarter"][key]) for key in known)
        lines.append(_line([one["variant"], settings, *ends]))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(found: Mapping[str, Sequence[dict[str, Curve]]]) -> bytes:
    """One line of panels per question, one panel per curve; thin lines are seeds, thick ones their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    asked = {question: [name for name in names if name in found] for question, names in QUESTIONS.items()}
    asked = {question: names for question, names in asked.items() if names}
    figure = Figure(figsize=(4 * len(CURVES), 3 * len(asked)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(asked), len(CURVES), squeeze=False)
    for line, (question, names) in zip(panels, asked.items(), strict=True):
        for axes, (key, label) in zip(line, CURVES.items(), strict=True):
            for index, name in enumerate(names):
                _draw(axes, [run[key] for run in found[name] if key in run], f"C{index}", name)
            axes.set_title(f"{question}: {label}", fontsize=9)
            axes.set_xlabel("round", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        line[0].legend(fontsize=8, frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes, runs: Sequence[Curve], colour: str, name: str) -> None:
    for run in runs:
        axes.plot(run.rounds, run.values, color=colour, linewidth=0.6, alpha=0.5)
    shared = sorted(set.intersection(*(set(run.rounds) for run in runs))) if runs else []
    known = [dict(zip(run.rounds, run.values, strict=True)) for run in runs]
    axes.plot(
        shared,
        [fmean(one[number] for one in known) for number in shared],
        color=colour,
        linewidth=2,
        label=name,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="meissonic-scenes-speed-rl", help="or maskgit-scenes-speed-rl")
    parser.add_argument("--base", type=Path, help="model folder; default the recipe's")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rounds", type=int, default=100, help="of each training")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all, as in speed_rl.beta=0.04")
    parser.add_argument("--out", type=Path, default=Path("runs/speed-rl-ablations"))
    parser.add_argument("--json", type=Path, help="the table; default OUT/ablations.json, the plot beside it")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    found: dict[str, list[dict[str, Curve]]] = {}
    path = chosen.json or chosen.out / "ablations.json"
    for name in chosen.variants:
        found[name] = [train(name, seed, chosen) for seed in chosen.seeds]
        # After each variant: what is finished can be looked at while the rest trains.
        content = table(found, chosen)
        write_text(path, json.dumps(content, indent=2) + "\n")
        write_text(path.with_suffix(".md"), markdown(content))
        path.with_suffix(".png").write_bytes(plot(found))
        ends = [run["rewards/scenes-judge/mean"].last() for run in found[name]]
        print(
            f"{name:20s} held-out judge of the last quarter {' '.join(f'{end:.3f}' for end in ends)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
