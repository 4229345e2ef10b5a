"""shortcut: a MIGM-Shortcut (arXiv 2602.23996) of any base model."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from swiftmask.core.ranges import check_fields
from swiftmask.data.sources import DataConfig
from swiftmask.methods.shortcut import write_shortcut
from swiftmask.methods.shortcut.rounds import RoundsConfig, TeacherRounds, held_out_loss
from swiftmask.methods.shortcut.sizes import Sizes, fresh_shortcut
from swiftmask.methods.shortcut.training import ShortcutTrainer
from swiftmask.recipes.conditions import Start
from swiftmask.recipes.held_out import LOSS, keep_best
from swiftmask.recipes.provenance import provenance, write_notice
from swiftmask.recipes.runs import OnLog, run_name, training_device
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig, train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutRecipe:
    """Base model, sizes and optimisation of a shortcut.

    Attributes:
        model, codec, text_encoder, prompts, data, source: base model and what it generates for
            (recipes/conditions.py).
        size: network by name; its widths follow the base's.
        network: sizes that differ from those of `size`.
        full_steps: the budget written into the shortcut's config as the default; None is three eighths of the
            base's own steps.
    """

    rounds: RoundsConfig
    training: TrainingConfig
    model: str = ""
    codec: str = ""
    text_encoder: str = ""
    prompts: str = ""
    data: str = ""
    source: DataConfig = DataConfig()
    size: Literal["small", "released"] = "small"
    network: Sizes = Sizes()
    full_steps: int | None = None
    name: str = "shortcut"

    def __post_init__(self) -> None:
        check_fields(self)
        self.rounds.check(self.training)
        if self.full_steps is not None and self.full_steps > max(self.rounds.step_counts, default=2**16):
            raise ValueError(
                f"full_steps must be at most the longest of rounds.step_counts "
                f"({max(self.rounds.step_counts)}), got {self.full_steps}"
            )

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(shortcut=...)`.
        `folder/best` is the shortcut with the lowest loss on held-out images so far.

        Errors: ValueError or FileNotFoundError for a model, prompts or settings that do not go together,
            before the model is read where that is possible.
        """
        start = Start.of(self)
        base = start.read(torch.float32 if self.training.precision == "no" else torch.bfloat16)
        teacher = base.model.to(training_device())  # type: ignore[attr-defined]
        conditions, rounds = start.conditions(teacher), self.rounds.of(teacher)
        torch.manual_seed(self.training.seed)
        shortcut = fresh_shortcut(teacher, self.size, self.network)
        trainer = ShortcutTrainer(shortcut, teacher, rounds)
        batches = TeacherRounds(teacher, rounds, conditions.at, shortcut, accumulate=self.training.accumulate)
        most = min(self.full_steps or max(1, base.steps * 3 // 8), max(rounds.step_counts))

        def save(trained: ShortcutTrainer, path: Path, more: dict[str, object]) -> None:
            facts = {"data": conditions.name, "rounds": asdict(rounds), "base": base.name}
            write_shortcut(
                path,
                trained.shortcut.eval(),
                base=teacher.spec,
                base_name=base.name,
                full_steps=most,
                provenance=provenance(self.name, self.training, folder, **facts, **more),
                dtype=torch.float16,
            )
            write_notice(path, start.notice)

        def look(step: int, average: Any) -> None:
            loss = {LOSS: held_out_loss(average, teacher, rounds, conditions.at)}
            keep_best(folder, step, loss, lambda path, facts: save(average, path, facts))

        trained = train(
            trainer,
            batches.batch,
            train_step,
            self.training,
            folder,
            name=run_name(self.name, teacher, shortcut.config, rounds, conditions),
            on_log=on_log,
            on_save=look,
        )
        save(trained, folder / "model", {})
        return folder / "model"


def recipe() -> ShortcutRecipe:
    """`swiftmask train shortcut model=runs/maskgit/model`."""
    training = TrainingConfig(
        num_steps=1500,
        batch_size=64,
        learning_rate=4e-3,
        muon_learning_rate=4e-3,
        warmup_steps=50,
        ema_decay=0.995,
        betas=(0.9, 0.99),
        precision="no",
        save_every=100,
    )
    return ShortcutRecipe(rounds=RoundsConfig(updates_per_round=40), training=training)


def preset(name: str, rounds: RoundsConfig, training: TrainingConfig) -> ShortcutRecipe:
    """The shortcut of a bundled model, by its name."""
    base = name.removesuffix("-shortcut")
    return replace(recipe(), name=name, model=base, rounds=rounds, training=training, full_steps=6)
