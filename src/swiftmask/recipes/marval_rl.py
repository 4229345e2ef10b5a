"""marval-rl: a MARVAL student tuned by differentiating rewards through its decode (arXiv 2511.15190).

A share of the distillation's own loss holds the student to its teacher.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftmask.api import find_method
from swiftmask.core.ranges import check_fields
from swiftmask.data.sources import DataConfig
from swiftmask.methods.marval import Student, read_student, write_student
from swiftmask.methods.marval.reward_tuning import (
    Pixels,
    RegularizedBatches,
    RegularizedTrainer,
    RewardBatch,
    RewardBatches,
    RewardConfig,
    RewardLoss,
    RewardTrainer,
    roll_out,
)
from swiftmask.methods.marval.student import copy_of
from swiftmask.methods.marval.training import Auxiliary, MarvalBatches, MarvalConfig, MarvalTrainer, MaskLaw
from swiftmask.methods.speed_rl.scorers import Judge, Prompts
from swiftmask.models.mar import MAR
from swiftmask.models.mar.generator import to_latents
from swiftmask.recipes.held_out import keep_best, mean_scores
from swiftmask.recipes.marval import RealTokens, open_classes, read_teacher
from swiftmask.recipes.provenance import notice_of, provenance, write_notice
from swiftmask.recipes.runs import OnLog, fingerprint, run_name, training_device
from swiftmask.rewards.named import Entry, Reward, entries, label_of, load_differentiable, load_for_classes
from swiftmask.training.loop import train
from swiftmask.training.setup import Batches, TrainingConfig, train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class MarvalRLRecipe:
    """Teacher, student, rewards, regulariser and optimisation.

    Attributes:
        tuning: a `divergence_weight` of 0 leaves out the auxiliary network and real images altogether.
        marval: of the divergence that holds the student to its teacher.
        model, codec: the teacher, a MAR, as in `swiftmask.load`.
        student: bundled name or folder; it was made from the teacher.
        reward: what is trained on, by name and with weights (rewards/named.py); each has a gradient.
        held_out: what is only logged beside them, on `judged` images; at least one. The first decides which
            checkpoint is the best.
        data, source: images with the teacher's classes (data/sources/opening.py).
        latents: folder of caches, which several runs may share; None is the run's own.
    """

    tuning: RewardConfig
    marval: MarvalConfig
    training: TrainingConfig
    model: str = ""
    codec: str = ""
    student: str = ""
    reward: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    judged: int = 32
    data: str = ""
    source: DataConfig = DataConfig()
    latents: Path | None = None
    max_unreadable: int = 0
    name: str = "marval-rl"

    def __post_init__(self) -> None:
        check_fields(self)
        for text in (*self.reward, *self.held_out):
            Entry.parsed(text)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(marval=...)`.
        `folder/best` is the student of the checkpoint with the best held-out score.

        Errors: ValueError or FileNotFoundError for models, rewards, data or settings that do not go together.
        """
        rewards, judges = self._entries()
        is_held = self.tuning.divergence_weight != 0
        source = open_classes(self.data, self.source) if is_held else None
        teacher, device = read_teacher(self.model, self.codec), training_device()
        mar = teacher.model
        assert isinstance(mar, MAR)
        student = read_student(find_method(self.student, "MARVAL student"), mar)
        started_from = f"{Path(self.student).name} {fingerprint(student)}"
        names = mar.class_names
        scores = [(e.weight, load_differentiable(e, names, device=device)) for e in rewards]
        watched = [Judge(label_of(e), load_for_classes(e, names, device=device)) for e in (*judges, *rewards)]
        loss = RewardLoss(reward=_summed(scores), config=self.tuning, to_pixels=unclamped_pixels(mar))
        told = (fingerprint(student), self.tuning, self.marval, self.reward)
        rewarded = RewardBatches(range(mar.network.config.num_classes), self.tuning)
        if source is None:
            trainer, batches = RewardTrainer(student, loss), rewarded
        else:
            real = RealTokens.encoded(
                mar,
                source,
                self.source,
                self.latents or folder / "latents",
                max_unreadable=self.max_unreadable,
                on_log=on_log,
            )
            told = (*told, self.source, source.identity, len(real))
            clean = MarvalBatches(real.clean(self.training), self.marval)
            trainer, batches = self._held(mar, student, loss, rewarded, clean)
        name = run_name(self.name, mar, *told)
        mar.to(device)
        torch.manual_seed(self.training.seed)
        facts = {"tuning": asdict(self.tuning), "marval": asdict(self.marval), "student": started_from}
        facts |= {"reward": self.reward, "held_out": self.held_out, "data": "none"}
        if source is not None:
            facts |= {"data": source.name, "licence": source.licence} | source.facts
        notices = ("" if source is None else source.notice, notice_of(self.model), notice_of(self.student))

        def save(student: Student, path: Path, more: dict[str, object]) -> None:
            made_by = provenance(self.name, self.training, folder, **facts, **more)
            write_student(path, student, base_name=teacher.name, provenance=made_by, dtype=torch.float16)
            write_notice(path, *notices)

        def look(step: int, average: Any) -> None:
            measured = mean_scores(watched, [self._judged(average.student)])
            keep_best(folder, step, measured, partial(save, average.student))

        trained = train(
            trainer,
            batches,
            train_step,
            self.training,
            folder,
            name=name,
            on_log=on_log,
            on_save=look,
        )
        save(trained.student, folder / "model", {})
        return folder / "model"

    def _entries(self) -> tuple[list[Entry], list[Entry]]:
        """Rewards and judges. Errors: ValueError if there are none of one kind, or a file is missing."""
        for key, example in (("student", "mar-scenes-marval"), ("reward", "pickscore"), ("held_out", "clip")):
            if not getattr(self, key):
                raise ValueError(f"{key} is not set: add it to the command, as in {key}={example}")
        return entries(self.reward), entries(self.held_out)

    def _held(
        self, teacher: MAR, student: Student, loss: RewardLoss, rewarded: RewardBatches, real: MarvalBatches
    ) -> tuple[RegularizedTrainer, Batches]:
        """The student held to its teacher. The auxiliary network starts as the teacher, whose distribution a
        finished student is near to.
        """
        auxiliary = Auxiliary(copy_of(teacher, student.own))
        distillation = MarvalTrainer(teacher, student, auxiliary, self.marval)
        return RegularizedTrainer(distillation, loss), RegularizedBatches(rewarded, real)

    @torch.no_grad()
    def _judged(self, student: Student) -> tuple[Tensor, Prompts]:
        """The same images at every checkpoint, and their labels."""
        num_classes = student.spec.num_classes or 1
        labels = [i * num_classes // self.judged % num_classes for i in range(self.judged)]
        batch = RewardBatch(labels, range(self.judged))
        return student.to_pixels(roll_out(student, batch, self.tuning)).float(), Prompts(labels)


def _summed(scores: list[tuple[float, Reward]]) -> Callable[..., Tensor]:
    """Rewards in their own units, weighted."""
    return lambda images_B3HW, labels: sum(weight * score(images_B3HW, labels) for weight, score in scores)  # type: ignore[return-value]


def unclamped_pixels(teacher: MAR) -> Pixels:
    """The teacher's `to_pixels` without its clamp, which would stop the gradients of saturated pixels.

    Student and teacher share one codec.
    """
    patch_size = teacher.network.config.patch_size
    return lambda tokens_BLC: teacher.codec.decode_unclamped(to_latents(tokens_BLC, patch_size))


def recipe() -> MarvalRLRecipe:
    """`swiftmask train marval-rl model=mar-b/ student=runs/marval/model data=imagenet/ reward=pickscore
    held_out=clip`. Nothing here has been swept.

    Weights are not cast (`precision`): steps are computed again in the backward pass, where a cast would be
    gone.
    """
    training = TrainingConfig(
        num_steps=300,
        batch_size=32,
        learning_rate=5e-5,
        betas=(0.0, 0.999),
        weight_decay=0.0,
        warmup_steps=50,
        ema_decay=0.99,
        precision="no",
        save_every=50,
        log_every=20,
    )
    return MarvalRLRecipe(
        tuning=RewardConfig(num_steps=16, grad_iterations=8, images_per_update=16),
        marval=MarvalConfig(guidance=1.5, mask=MaskLaw(std=0.5, lowest=0.05)),
        training=training,
    )
