"""marval-imagenet: the released MAR-B, MAR-L or MAR-H distilled to one head call (MARVAL, arXiv 2511.15190).

Two stages, each resumable: the latents of an image folder (image_latents.py), the student.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.data.images import CachedLatents
from swiftmask.methods.marval import write_student
from swiftmask.methods.marval.training import MarvalConfig
from swiftmask.models.mar import MAR
from swiftmask.models.mar.generator import to_patches
from swiftmask.models.mar.weights import RELEASED
from swiftmask.recipes.image_latents import LatentsRecipe, required
from swiftmask.recipes.marval_distillation import (
    DrawTokens,
    Part,
    Weight,
    clean_tokens,
    distil,
    make_distillation,
)
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import OnLog, run_name, training_device
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStudentRecipe:
    """Data, loss and optimisation of the student.

    Attributes:
        teacher: the released file (`checkpoint-last.pth`, or its safetensors mirror) with `latents.codec`, or
            a model folder, which has its own codec.
        cache: folder of the latents, which several runs may share; None is the run's own.
        part: what student and auxiliary network train.
        weight: omega(t) of the student's loss.
    """

    latents: LatentsRecipe
    marval: MarvalConfig
    training: TrainingConfig
    teacher: Path | None = None
    cache: Path | None = None
    part: Part = "network"
    weight: Weight = "flat"
    name: str = "marval-imagenet"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Cache and train, or continue, in `folder`; returns `folder/model` for `accelerate(marval=...)`."""
        teacher, device = self.read_teacher(), training_device()
        teacher.to(device)
        cached = self.latents.encode(teacher.codec, self.cache or folder / "latents", on_log)
        check_classes(cached, teacher)
        student = distil(
            make_distillation(teacher, self.marval, part=self.part, weight=self.weight),
            clean_tokens(draw_from(cached, teacher.network.config.patch_size), self.training, device),
            self.marval,
            self.training,
            folder,
            name=run_name(self.name, teacher, self.marval, self.part, self.weight),
            on_log=on_log,
        )
        facts = {"marval": asdict(self.marval), "part": self.part, "weight": self.weight}
        data = f"{len(cached)} images of {len(cached.class_names)} classes, cached by {cached.index.encoder}"
        write_student(
            folder / "model",
            student,
            base_name=released_name(teacher),
            provenance=provenance(self.name, self.training, **facts, data=data),
            dtype=torch.bfloat16,
        )
        return folder / "model"

    def read_teacher(self) -> MAR:
        """The frozen teacher on the CPU. Errors: FileNotFoundError; ValueError for a file that does not fit,
        or one that is missing from the settings.
        """
        teacher = required(self.teacher, "teacher", "mar_base/checkpoint-last.pth")
        if teacher.is_dir():
            return MAR.from_pretrained(teacher)
        codec = required(self.latents.codec, "latents.codec", "kl16.ckpt")
        return MAR.from_released(teacher, codec)


def draw_from(cached: CachedLatents, patch_size: int) -> DrawTokens:
    """Tokens and labels of images picked at random, half of them mirrored."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        picked_B = torch.randint(len(cached), (count,), generator=generator)
        return to_patches(cached.draw(picked_B, generator), patch_size), cached.labels_X[picked_B]

    return draw


def check_classes(cached: CachedLatents, teacher: MAR) -> None:
    """Errors: ValueError for more or fewer class folders than the teacher has classes: labels are places in
    the sorted list, so one folder too many or too few would shift them.
    """
    known, found = teacher.network.config.num_classes, len(cached.class_names)
    if found != known:
        raise ValueError(
            f"the image folder has {found} classes, the teacher knows {known}: give one subfolder for each, "
            "in the teacher's order by name"
        )


def released_name(teacher: MAR) -> str | None:
    """ "mar-b", "mar-l" or "mar-h", by the sizes; None for another MAR."""
    return next((name for name, sizes in RELEASED.items() if sizes == teacher.network.config), None)


def training_bytes(num_parameters: int, num_trained: int, *, sharded_over: int = 1) -> int:
    """Device memory of one process at its peak, without activations: the teacher, and weights, gradients,
    two moments of AdamW and averaged weights of student and auxiliary network, in float32.

    Args:
        num_parameters: of the teacher, codec included.
        num_trained: of the student's own, from `network_parameters` or `head_parameters`.
        sharded_over: processes that split what is trained (training.sharded); weights and gradients are
            whole for the length of a step.
    """
    weights = 2 * num_trained
    whole = 2 * weights if sharded_over > 1 else 0
    return 4 * (num_parameters + whole + 5 * weights // sharded_over)


def recipe() -> ImageStudentRecipe:
    """`swiftmask train marval-imagenet teacher=mar_base/checkpoint-last.pth latents.codec=kl16.ckpt
    latents.images=/data/imagenet/train`, with `torchrun --nproc_per_node=N -m` in front for several GPUs.

    Run at toy size only, in one process and in two: 30 epochs as in the paper, with the rates of its
    relatives (SiD, SIM) for what it does not say. The auxiliary network's updates count as steps, too. A
    step's 1024 images are computed in shares of 64 (16 shares in one process; on 8, set
    training.accumulate=2). Without activations MAR-B, L and H take 9.4, 21.3 and 41.7 GB, and 5.5, 12.2 and
    23.8 GB with training.sharded=True on 8 (`training_bytes`).
    """
    training = TrainingConfig(
        num_steps=75_000,
        batch_size=1024,
        accumulate=16,
        learning_rate=1e-5,
        betas=(0.0, 0.999),
        weight_decay=0.0,
        warmup_steps=500,
        ema_decay=0.9995,
        precision="bf16",
        save_every=1000,
    )
    return ImageStudentRecipe(latents=LatentsRecipe(), marval=MarvalConfig(guidance=1.2), training=training)
