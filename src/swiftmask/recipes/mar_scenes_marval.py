"""mar-scenes-marval: a student of mar-scenes that draws a token in one head call (MARVAL, arXiv 2511.15190).

Its teacher is the bundled model, or the one a run of its recipe left.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from swiftmask.core.ranges import check_fields
from swiftmask.methods.marval import write_student
from swiftmask.methods.marval.training import MarvalConfig
from swiftmask.models.mar import MAR
from swiftmask.recipes.marval_distillation import (
    Part,
    Weight,
    clean_tokens,
    distil,
    make_distillation,
    read_teacher,
)
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import OnLog, run_name, training_device
from swiftmask.recipes.scenes_latents import SceneLatents
from swiftmask.registry import WEIGHTS
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneStudentRecipe:
    """Loss and optimisation of the student.

    Attributes:
        part: what student and auxiliary network train.
        weight: omega(t) of the student's loss.
        teacher: model folder of the base.
        base_name: what the student's config calls it.
        num_pictures: size of the cache of real latents.
        latents: folder of caches, which runs with one teacher may share; None is the run's own.
    """

    marval: MarvalConfig
    training: TrainingConfig
    part: Part = "network"
    weight: Weight = "flat"
    teacher: str = str(WEIGHTS / "mar-scenes")
    base_name: str = "mar-scenes"
    num_pictures: int = 60_000
    latents: Path | None = None
    name: str = "mar-scenes-marval"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(marval=...)`."""
        teacher, device = read_teacher(self.teacher, trained_by="mar-scenes"), training_device()
        latents = scene_latents(teacher, self.latents or folder, self.num_pictures)
        name = run_name(self.name, teacher, self.marval, self.part, self.weight, self.num_pictures)
        teacher.to(device)
        student = distil(
            make_distillation(teacher, self.marval, part=self.part, weight=self.weight),
            clean_tokens(latents.draw, self.training, device),
            self.marval,
            self.training,
            folder,
            name=name,
            on_log=on_log,
        )
        facts = provenance(self.name, self.training, marval=asdict(self.marval), part=self.part)
        write_student(
            folder / "model",
            student,
            base_name=self.base_name,
            provenance={**facts, "weight": self.weight, "pictures": self.num_pictures},
            dtype=torch.float16,
        )
        return folder / "model"


def scene_latents(teacher: MAR, folder: Path, num_pictures: int) -> SceneLatents:
    """Real latents of the teacher's codec."""
    return SceneLatents.cached(
        teacher.codec,
        folder / "latents",
        num_pictures=num_pictures,
        patch_size=teacher.network.config.patch_size,
    )


def recipe() -> SceneStudentRecipe:
    """`swiftmask train mar-scenes-marval`: an hour on one CPU core; half of the updates are the auxiliary
    network's. Measured quality in docs/marval.md, with the ablations behind masks and timesteps.

    Masks are those that MAR itself was trained with. Guidance is what the teacher's, which grows to 2 over a
    decode, is on average.
    """
    training = TrainingConfig(
        num_steps=3000,
        batch_size=64,
        learning_rate=1e-4,
        betas=(0.0, 0.999),
        weight_decay=0.0,
        warmup_steps=100,
        ema_decay=0.998,
        precision="no",
        save_every=100,
    )
    marval = MarvalConfig(guidance=1.5, first_timestep=300, noisings_per_token=2)
    return SceneStudentRecipe(marval=marval, training=training)
