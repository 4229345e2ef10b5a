"""mar-scenes-marval-rl: the student of mar-scenes, tuned by a reward (MARVAL-RL, arXiv 2511.15190).

The reward is the training reader of Scenes, differentiated through the whole decode; the judge that
evaluation reports is never asked. A share of the distillation's own loss holds the student to its teacher.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.methods.marval import Student, read_student, write_student
from swiftmask.methods.marval.masking import MaskLaw
from swiftmask.methods.marval.reward_tuning import (
    Pixels,
    RegularizedBatches,
    RegularizedTrainer,
    RewardBatches,
    RewardConfig,
    RewardLoss,
    RewardTrainer,
    train_step,
)
from swiftmask.methods.marval.student import copy_of
from swiftmask.methods.marval.training import Auxiliary, MarvalBatches, MarvalConfig, MarvalTrainer
from swiftmask.models.mar import MAR
from swiftmask.models.mar.generator import to_latents
from swiftmask.recipes.mar_scenes_marval import scene_latents
from swiftmask.recipes.marval_distillation import clean_tokens, read_teacher
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import OnLog, fingerprint, run_name, training_device
from swiftmask.registry import WEIGHTS
from swiftmask.rewards.scenes import load_reader
from swiftmask.rewards.scenes_likelihood import class_log_likelihood
from swiftmask.training.loop import train
from swiftmask.training.setup import Batches, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRecipe:
    """Reward, regulariser and optimisation.

    Attributes:
        tuning: a `divergence_weight` of 0 leaves out the auxiliary network and real pictures altogether.
        marval: of the divergence that holds the student to its teacher.
        teacher, student: folders; the student was made from the teacher.
        reward: folder of the reader.
        num_pictures: size of the cache of real latents.
        latents: folder of caches, which runs with one teacher may share; None is the run's own.
    """

    tuning: RewardConfig
    marval: MarvalConfig
    training: TrainingConfig
    teacher: str = str(WEIGHTS / "mar-scenes")
    student: str = str(WEIGHTS / "mar-scenes-marval")
    reward: str = str(WEIGHTS / "scenes-reward")
    base_name: str = "mar-scenes"
    num_pictures: int = 60_000
    latents: Path | None = None
    name: str = "mar-scenes-marval-rl"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(marval=...)`."""
        teacher, device = read_teacher(self.teacher, trained_by="mar-scenes"), training_device()
        student = read_student(self.student, teacher)
        started_from = f"{Path(self.student).name} {fingerprint(student)}"
        name = run_name(self.name, teacher, fingerprint(student), self.tuning, self.marval, self.num_pictures)
        loss = self.reward_loss(teacher, device)
        if self.tuning.divergence_weight == 0:
            trainer, batches = RewardTrainer(student, loss), self.rewarded()
        else:
            trainer, batches = self.held(teacher, student, loss, folder, device)
        teacher.to(device)
        torch.manual_seed(self.training.seed)
        trained = train(trainer, batches, train_step, self.training, folder, name=name, on_log=on_log)
        facts = {"tuning": asdict(self.tuning), "marval": asdict(self.marval), "student": started_from}
        write_student(
            folder / "model",
            trained.student,
            base_name=self.base_name,
            provenance=provenance(self.name, self.training, **facts),
            dtype=torch.float16,
        )
        return folder / "model"

    def reward_loss(self, teacher: MAR, device: torch.device) -> RewardLoss:
        reward: Callable[..., Tensor] = class_log_likelihood(load_reader(self.reward, device))
        return RewardLoss(reward=reward, config=self.tuning, to_pixels=unclamped_pixels(teacher))

    def rewarded(self) -> RewardBatches:
        """Every class, each picture with its own seed."""
        return RewardBatches(range(NUM_CLASSES), self.tuning)

    def held(
        self, teacher: MAR, student: Student, loss: RewardLoss, folder: Path, device: torch.device
    ) -> tuple[RegularizedTrainer, Batches]:
        """The student held to its teacher. The auxiliary network starts as the teacher, whose distribution a
        finished student is near to.
        """
        latents = scene_latents(teacher, self.latents or folder, self.num_pictures)
        real = MarvalBatches(clean_tokens(latents.draw, self.training, device), self.marval)
        auxiliary = Auxiliary(copy_of(teacher, student.own))
        distillation = MarvalTrainer(teacher, student, auxiliary, self.marval)
        return RegularizedTrainer(distillation, loss), RegularizedBatches(self.rewarded(), real)


def unclamped_pixels(teacher: MAR) -> Pixels:
    """The teacher's `to_pixels` without its clamp, which would stop the gradients of saturated pixels.

    Student and teacher share one codec.
    """
    patch_size = teacher.network.config.patch_size
    return lambda tokens_BLC: teacher.codec.decode_unclamped(to_latents(tokens_BLC, patch_size))


def recipe() -> RewardRecipe:
    """`swiftmask train mar-scenes-marval-rl`: 10 minutes on one CPU core; half of the updates are the
    auxiliary network's. Measured quality in docs/marval.md; nothing here has been swept.

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
    return RewardRecipe(
        tuning=RewardConfig(num_steps=16, grad_iterations=8, images_per_update=16),
        marval=MarvalConfig(guidance=1.5, mask=MaskLaw(std=0.5, lowest=0.05)),
        training=training,
    )
