"""marval: a student of any MAR that generates a token in one head call (MARVAL, arXiv 2511.15190).

Two stages, each resumable: the latents of a data source, the student.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from swiftmask.api import load
from swiftmask.core.ranges import check_fields
from swiftmask.data.encoded import EncodedImages, encoded_images
from swiftmask.data.sources import Classes, DataConfig, Source, held_out, labels_of, open_source
from swiftmask.methods.marval import Student, write_student
from swiftmask.methods.marval.held_out import HeldOutScore
from swiftmask.methods.marval.objective import flat, noise_level
from swiftmask.methods.marval.training import (
    CleanTokens,
    MarvalBatches,
    MarvalConfig,
    make_trainer,
    mask_tokens,
)
from swiftmask.models.mar import MAR
from swiftmask.models.mar.training import sampled_tokens
from swiftmask.pipeline import Pipeline
from swiftmask.recipes.held_out import LOSS, keep_best, spread
from swiftmask.recipes.provenance import notice_of, provenance, write_notice
from swiftmask.recipes.runs import OnLog, fingerprint, run_name, training_device
from swiftmask.recipes.tokenizer import process_share, reported
from swiftmask.recipes.tokenizer_files import Tokenizer
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig, step_seed, train_step

_WEIGHTS = {"flat": flat, "noise-level": noise_level}

_HELD_OUT_IMAGES = 16

_DATA_STREAM = 0x64617461
"""Keeps the draws of data apart from those of masks, and from those the training loop makes with the same
seed and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarvalRecipe:
    """Teacher, data, loss and optimisation of the student.

    Attributes:
        model, codec: the teacher, a MAR, as in `swiftmask.load`.
        data, source: images with the teacher's classes (data/sources/opening.py).
        latents: folder of caches, which several runs may share; None is the run's own.
        max_unreadable: images that may be left out because they cannot be read.
        part: what student and auxiliary network train: all that generates a token, or the head alone.
        weight: omega(t) of the student's loss.
    """

    marval: MarvalConfig
    training: TrainingConfig
    model: str = ""
    codec: str = ""
    data: str = ""
    source: DataConfig = DataConfig()
    latents: Path | None = None
    max_unreadable: int = 0
    part: Literal["network", "head"] = "network"
    weight: Literal["flat", "noise-level"] = "flat"
    name: str = "marval"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Encode and train, or continue, in `folder`; returns `folder/model`, ready for
        `accelerate(marval=...)`. `folder/best` is the student whose tokens for held-out images are nearest to
        the teacher's (methods/marval/held_out.py).

        Errors: ValueError or FileNotFoundError for a model, data or settings that do not go together.
        """
        source, teacher = open_classes(self.data, self.source), read_teacher(self.model, self.codec)
        mar = teacher.model
        assert isinstance(mar, MAR)
        own = mar.network_parameters() if self.part == "network" else mar.head_parameters()
        check_room(mar, own, sharded=self.training.sharded)
        real = RealTokens.encoded(
            mar,
            source,
            self.source,
            self.latents or folder / "latents",
            max_unreadable=self.max_unreadable,
            on_log=on_log,
        )
        told = (self.marval, self.part, self.weight, self.source, source.identity, len(real))
        name = run_name(self.name, mar, *told)
        mar.to(training_device())
        torch.manual_seed(self.training.seed)
        facts = {"marval": asdict(self.marval), "part": self.part, "weight": self.weight}
        data = f"{source.name}: {len(real)} images of {mar.network.config.num_classes} classes"

        def save(student: Student, path: Path, more: dict[str, object]) -> None:
            told = facts | more | {"data": data, "licence": source.licence} | source.facts
            made_by = provenance(self.name, self.training, folder, **told)
            write_student(path, student, base_name=teacher.name, provenance=made_by, dtype=torch.float16)
            write_notice(path, source.notice, notice_of(self.model))

        score = held_out_score(mar, real, self.marval)

        def look(step: int, average: Any) -> None:
            if score is not None:
                loss = {LOSS: score(average.student)}
                keep_best(folder, step, loss, partial(save, average.student))

        trained = train(
            make_trainer(mar, own, self.marval, weight=_WEIGHTS[self.weight]),
            MarvalBatches(real.clean(self.training), self.marval),
            train_step,
            self.training,
            folder,
            name=name,
            on_log=on_log,
            on_save=look,
        )
        save(trained.student, folder / "model", {})
        return folder / "model"


class RealTokens:
    """Latents of training images, sampled from their posterior anew at every use."""

    def __init__(
        self, teacher: MAR, encoded: EncodedImages, labels_X: Tensor, picked_X: Tensor, mirror: bool
    ) -> None:
        self._teacher, self._encoded, self._labels_X = teacher, encoded, labels_X
        self._picked_X, self._mirror = picked_X, mirror

    @classmethod
    def encoded(
        cls,
        teacher: MAR,
        source: Source,
        config: DataConfig,
        folder: Path,
        *,
        max_unreadable: int = 0,
        on_log: OnLog | None = None,
    ) -> "RealTokens":
        """Those of a source's items that are not held out, from the cache in `folder`.

        Errors: ValueError for classes that are not the teacher's, or images that cannot be read.
        """
        labels_X = teachers_labels(labels_of(source), teacher)
        device, codec = training_device(), teacher.codec.to(training_device())
        size = codec.config.image_size or codec.config.resolution
        tokenizer = Tokenizer(codec, size)
        encoded = encoded_images(
            source,
            size,
            lambda images_B3HW: tokenizer.rows(images_B3HW.to(device)),
            folder,
            encoder=f"kl {fingerprint(codec)}",
            mirrored=config.mirror,
            max_unreadable=max_unreadable,
            share=process_share(),
            on_progress=reported(on_log, "encoding images"),
        )
        out_X = held_out(source, config.held_out)[encoded.items]
        if out_X.all():
            raise ValueError(f"all images of {source.name} are held out: lower source.held_out")
        return cls(teacher, encoded, labels_X[encoded.items], (~out_X).nonzero()[:, 0], config.mirror)

    def __len__(self) -> int:
        return len(self._picked_X)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, C] and labels [B] of images picked at random."""
        picked_B = self._picked_X[torch.randint(len(self), (count,), generator=generator)]
        mirrored_B = torch.rand(count, generator=generator) < 0.5 if self._mirror else None
        return self._tokens(picked_B, mirrored_B, generator), self._labels_X[picked_B]

    def held_out(self, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Tokens and labels of at most that many images that `draw` never picks; None if there are none."""
        is_out_X = torch.ones(len(self._labels_X), dtype=torch.bool)
        is_out_X[self._picked_X] = False
        out_X = is_out_X.nonzero()[:, 0]
        if not len(out_X):
            return None
        picked_B = out_X[spread(most, len(out_X))]
        return self._tokens(picked_B, None, generator), self._labels_X[picked_B]

    def _tokens(self, picked_B: Tensor, mirrored_B: Tensor | None, generator: torch.Generator) -> Tensor:
        rows = self._encoded.rows(picked_B, mirrored_B=mirrored_B)
        scale, patch_size = self._teacher.codec.config.scale, self._teacher.network.config.patch_size
        return sampled_tokens(rows, scale, patch_size, generator)

    def clean(self, training: TrainingConfig) -> CleanTokens:
        """Tokens of a step, a function of it alone, on the device of the training."""
        device = training_device()

        def clean(step: int, rank: int, num_ranks: int) -> tuple[Tensor, list[int]]:
            generator = torch.Generator().manual_seed(step_seed(training.seed, step, rank + _DATA_STREAM))
            tokens_BLC, labels_B = self.draw(training.batch_size // num_ranks, generator)
            return tokens_BLC.to(device), labels_B.tolist()

        return clean


def held_out_score(teacher: MAR, real: RealTokens, config: MarvalConfig) -> HeldOutScore | None:
    """On at most 16 held-out images, masked as those of the training; None if there are none."""
    generator = torch.Generator().manual_seed(0)
    found = real.held_out(_HELD_OUT_IMAGES, generator)
    if found is None:
        return None
    tokens_BLC, labels_B = found
    canvas = mask_tokens(tokens_BLC.to(training_device()), config.mask, generator)
    return HeldOutScore(teacher, canvas, labels_B.tolist(), config.guidance)


def open_classes(data: str, config: DataConfig) -> Source:
    """Errors: ValueError or FileNotFoundError for a source without images or classes."""
    source = open_source(data, config)
    labels_of(source)
    return source


def read_teacher(model: str, codec: str) -> Pipeline:
    """A frozen MAR on the CPU. Errors: ValueError or FileNotFoundError for what is no MAR."""
    if not model:
        raise ValueError("model is not set: add the teacher to the command, as in model=mar-b/")
    teacher = load(model, codec=codec or None, device="cpu")
    if not isinstance(teacher.model, MAR):
        raise ValueError(f"{model} is a {teacher.model.spec.name}, which has no diffusion head: use a mar")
    return teacher


def teachers_labels(classes: Classes, teacher: MAR) -> Tensor:
    """The teacher's number of each item's class: by name where both have the same names, else by place.

    Errors: ValueError for more or fewer classes than the teacher has: labels are then places in the sorted
        list of folders, so one too many or too few would shift them.
    """
    known, found = teacher.network.config.num_classes, len(classes.names)
    if found != known:
        raise ValueError(
            f"the data has {found} classes, the teacher knows {known}: give one subfolder for each, in the "
            "teacher's order by name"
        )
    if set(classes.names) == set(teacher.class_names):
        return torch.tensor([teacher.class_names.index(name) for name in classes.names])[classes.labels_X]
    return classes.labels_X


def training_bytes(num_parameters: int, num_trained: int, *, sharded_over: int = 1) -> int:
    """Device memory of one process at its peak, without activations: the teacher, and weights, gradients,
    two moments of AdamW and averaged weights of student and auxiliary network, in float32.

    Args:
        num_parameters: of the teacher, codec included.
        num_trained: of the student's own, from `MAR.network_parameters` or `MAR.head_parameters`.
        sharded_over: processes that split what is trained (training.sharded); weights and gradients are
            whole for the length of a step.
    """
    weights = 2 * num_trained
    whole = 2 * weights if sharded_over > 1 else 0
    return 4 * (num_parameters + whole + 5 * weights // sharded_over)


def check_room(teacher: MAR, own: list[str], *, sharded: bool) -> None:
    """Errors: ValueError for a GPU that the training does not fit, even without activations."""
    device = training_device()
    if device.type != "cuda":
        return
    counts = {name: parameter.numel() for name, parameter in teacher.named_parameters()}
    share = process_share().count if sharded else 1
    needed = training_bytes(sum(counts.values()), sum(counts[name] for name in own), sharded_over=share)
    available = torch.cuda.get_device_properties(device).total_memory
    if needed > available:
        raise ValueError(
            f"the training needs {needed / 1e9:.1f} GB without activations, this GPU has "
            f"{available / 1e9:.1f}: split it over processes (training.sharded=True), or train part=head"
        )


def recipe() -> MarvalRecipe:
    """`swiftmask train marval model=mar-b/ data=imagenet/train`, for a released file with `codec=kl16.ckpt`.

    Rates and masks are those that the bundled student was trained with; images are not mirrored
    (`source.mirror=True` does).
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
    return MarvalRecipe(marval=marval, training=training)
