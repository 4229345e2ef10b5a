"""One trainer of base models: any family, any data, a tokenizer made by `train tokenizer` or a model's own.

Stages, each resumable: the tokenizer (if the recipe brings one), the cache of tokens, the network.
"""

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftmask.api import load
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Task, Trainable
from swiftmask.core.writing import write_bytes
from swiftmask.data.encoded import EncodedImages, encoded_images
from swiftmask.data.sources import (
    DataConfig,
    Source,
    asked_of_captions,
    held_out,
    labels_of,
    open_source,
    require_captions,
)
from swiftmask.evaluate.sheets import side_by_side
from swiftmask.methods.speed_rl.scorers import Judge, Prompts
from swiftmask.pipeline import Pipeline
from swiftmask.recipes.held_out import LOSS, keep_best, mean_scores
from swiftmask.recipes.provenance import notice_of, provenance, write_notice
from swiftmask.recipes.runs import OnLog, fingerprint, run_name, training_device
from swiftmask.recipes.tokenizer import TokenizerRecipe, process_share, reported
from swiftmask.recipes.tokenizer_files import Tokenizer, read_tokenizer, tokenizer_of
from swiftmask.registry import trainable
from swiftmask.rewards.named import Entry, entries, label_of, load_for
from swiftmask.training.loop import train
from swiftmask.training.processes import processes, to_device
from swiftmask.training.setup import TrainingConfig, memory_needed, step_seed, train_step

_log = logging.getLogger(__name__)

_HELD_OUT_BATCHES = 4
_NOT_A_STEP = 1 << 40
"""Seeds of held-out batches are those of a step that no run reaches."""

_JUDGED_TOGETHER = 8
"""Images that are generated for the judges at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """What is looked at and measured at every checkpoint.

    Attributes:
        number: images on the sheet `samples.png`, generated with the averaged weights; 0 draws none.
        steps: decode steps of those.
    """

    number: int = 8
    steps: int = 12

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class BaseModelRecipe:
    """Data, tokenizer, sizes and optimisation of a base model.

    Attributes:
        family: folder under `models/`.
        data: a folder of images or another source (data/sources/opening.py).
        tokenizer: folder of a tokenizer, or of a model whose tokenizer is taken; a bundled name.
        size: network by name: tiny, small, base or released.
        network: sizes that differ from those of `size`.
        objective: the family's settings of the loss.
        initial: model to go on from, with its tokenizer: a folder (of a released model, too) or a bundled
            name; empty starts anew.
        sampling, steps: defaults written into the model's config.
        max_unreadable: images that may be left out because they cannot be read.
        codec: recipe of a tokenizer that is trained first where `tokenizer` and `initial` are empty.
        judges: what scores `judged` generated images at every checkpoint, by name (rewards/named.py), as in
            "clip". They are logged; the loss on held-out images decides which checkpoint is the best.
    """

    family: str
    network: Any
    objective: Any
    sampling: SamplingOptions
    training: TrainingConfig
    data: str = ""
    tokenizer: str = ""
    size: str = "small"
    initial: str = ""
    steps: int = 16
    max_unreadable: int = 0
    samples: SampleConfig = SampleConfig()
    source: DataConfig = DataConfig()
    codec: TokenizerRecipe | None = None
    judges: tuple[str, ...] = ()
    judged: int = 32
    name: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        for text in self.judges:
            Entry.parsed(text)
        self.trainable.chosen(self.size, self.network)

    @property
    def trainable(self) -> Trainable:
        return trainable(self.family)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train everything, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`.

        `folder/best` is the model with the lowest loss on held-out images so far.

        Errors: ValueError or FileNotFoundError for data, a tokenizer or a model that do not fit.
        """
        source = open_source(self.data, self.source)
        self.check_source(source)
        judges = entries(self.judges)
        initial = self.read_initial()
        tokenizer = self.read_tokenizer(initial, folder, on_log)
        encoded = self.encoded(source, tokenizer, folder, on_log)
        run = _Run(self, source, tokenizer, encoded, initial)
        run.load(judges)
        if processes().is_main_process:
            _log.warning("%s: %s", self.name, memory_needed(run.task.trainer, self.training))
        started_from = run_name(self.name, run.task.trainer, fingerprint(tokenizer.codec), *run.told())
        trained = train(
            run.task.trainer,
            run.batch,
            train_step,
            self.training,
            folder,
            name=started_from,
            on_log=on_log,
            on_save=lambda step, average: run.look(step, average, folder),
        )
        if processes().is_main_process:
            run.save(trained, folder / "model")
            for line in source.notices():
                _log.warning(line)
        processes().wait_for_everyone()
        return folder / "model"

    def check_source(self, source: Source) -> None:
        """Errors: ValueError for a source without what the family is conditioned on."""
        if self.trainable.draws == "class":
            labels_of(source)
        else:
            require_captions(source)

    def read_initial(self) -> Any:
        """The model to go on from, on the CPU in float32, or None.

        Errors: FileNotFoundError; ValueError for a model of another family.
        """
        if not self.initial:
            return None
        model = load(self.initial, device="cpu", dtype=torch.float32).model
        if model.spec.name != self.family:
            raise ValueError(f"initial is a {model.spec.name} ({self.initial}), expected a {self.family}")
        return model

    def read_tokenizer(self, initial: Any, folder: Path, on_log: OnLog | None) -> Tokenizer:
        """The tokenizer, after training it if the recipe brings one; else that of the model to go on from.

        Errors: FileNotFoundError; ValueError for one of another kind than the family needs.
        """
        where, kinds = self.tokenizer, self.trainable.tokenizers
        if not where and initial is not None:
            return tokenizer_of(initial)
        if not where and self.codec is not None:
            codec = replace(self.codec, data=self.codec.data or self.data)
            where = str(codec.run(folder / "tokenizer", on_log))
        if not where:
            raise ValueError(
                f"tokenizer is not set: train one (swiftmask train tokenizer data=FOLDER kind={kinds[0]}) "
                "and give its folder, as in tokenizer=runs/tokenizer/model"
            )
        found = read_tokenizer(where)
        if found.kind not in kinds:
            raise ValueError(
                f"the tokenizer in {where} is of kind {found.kind!r}, {self.family} needs {kinds[0]!r}: "
                f"train one with kind={kinds[0]}"
            )
        if initial is not None and fingerprint(found.codec) != fingerprint(tokenizer_of(initial).codec):
            _log.warning(
                "%s was trained on another tokenizer than %s: what its tokens mean is learned anew "
                "(leave out tokenizer= to keep its own)",
                self.initial,
                where,
            )
        return found

    def encoded(
        self, source: Source, tokenizer: Tokenizer, folder: Path, on_log: OnLog | None
    ) -> EncodedImages:
        """The tokens of every image, encoded once."""
        codec = tokenizer.codec.to(training_device())

        def encode(images_B3HW: Tensor) -> Tensor:
            return tokenizer.rows(images_B3HW.to(training_device()))

        found = encoded_images(
            source,
            tokenizer.resolution,
            encode,
            folder / "tokens",
            encoder=f"{tokenizer.kind} {fingerprint(codec)}",
            mirrored=self.source.mirror,
            max_unreadable=self.max_unreadable,
            share=process_share(),
            on_progress=reported(on_log, "encoding images"),
        )
        codec.cpu()
        return found


class _Run:
    """One run: what is trained, on which items, and what is looked at meanwhile."""

    def __init__(
        self,
        recipe: BaseModelRecipe,
        source: Source,
        tokenizer: Tokenizer,
        encoded: EncodedImages,
        initial: Any,
    ) -> None:
        self._recipe, self._source, self._encoded = recipe, source, encoded
        out_X = held_out(source, recipe.source.held_out)[encoded.items]
        self.trained_X, self.tested_X = (~out_X).nonzero()[:, 0], out_X.nonzero()[:, 0]
        if not len(self.trained_X):
            raise ValueError(f"all images of {source.name} are held out: lower source.held_out")
        classes = source.classes if recipe.trainable.draws == "class" else None
        self._labels_X = None if classes is None else classes.labels_X[encoded.items]
        self._captions = [] if classes else [source.captions(int(item)) for item in encoded.items]
        subject = Subject(
            codec=tokenizer.codec,
            resolution=tokenizer.resolution,
            class_names=classes.names if classes else (),
            attributes_NA=classes.attributes_NA if classes else None,
            captions=[text for several in self._captions for text in several],
            trained=self._labelled_rows,
        )
        torch.manual_seed(recipe.training.seed)
        family = recipe.trainable
        self._judges: list[Judge] = []
        self.task: Task = (
            family.fresh(family.chosen(recipe.size, recipe.network), subject, recipe.objective)
            if initial is None
            else family.resumed(initial, subject, recipe.objective)
        )

    def told(self) -> tuple[object, ...]:
        """What the result depends on beside weights and optimisation."""
        labels = self._captions if self._labels_X is None else self._labels_X.tolist()
        told = zlib.crc32(repr((labels, self.trained_X.tolist())).encode("utf-8", "surrogatepass"))
        return (self._source.identity, told, self._recipe.source, self._recipe.objective)

    def batch(self, step: int, rank: int, num_ranks: int) -> object:
        """The masked batch of one step, a function of the step alone."""
        generator = torch.Generator().manual_seed(step_seed(self._recipe.training.seed, step, rank))
        count = self._recipe.training.batch_size // num_ranks
        return self._batch_of(self.trained_X, count, generator)

    def _labelled_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Labels and tokens of the images that are trained on, in batches."""
        assert self._labels_X is not None
        for part_B in self.trained_X.split(256):
            yield self._labels_X[part_B], self._encoded.rows(part_B)

    def _batch_of(self, chosen_X: Tensor, count: int, generator: torch.Generator) -> object:
        picked_B = chosen_X[torch.randint(len(chosen_X), (count,), generator=generator)]
        mirrored_B = None
        if self._recipe.source.mirror:
            mirrored_B = torch.rand(count, generator=generator) < 0.5
        rows = self._encoded.rows(picked_B, mirrored_B=mirrored_B)
        return self.task.batch(rows, self._what(picked_B, generator), generator)

    def _what(self, picked_B: Tensor, generator: torch.Generator) -> Tensor | Sequence[str]:
        """Labels, or one of the captions of each image."""
        if self._labels_X is not None:
            return self._labels_X[picked_B]
        several = [self._captions[i] for i in picked_B.tolist()]
        chosen_B = torch.rand(len(several), generator=generator)
        return [texts[int(len(texts) * place)] for texts, place in zip(several, chosen_B, strict=True)]

    def load(self, judges: Sequence[Entry]) -> None:
        """The judges of a process that looks. Errors: ValueError or FileNotFoundError, as `load_for`."""
        self._shown = self._picked(self._recipe.judged)
        names = None if self._labels_X is None else self._source.classes.names  # type: ignore[union-attr]
        if processes().is_main_process:
            what, device = self._shown[1], training_device()
            said = asked_of_captions(self._source) if names is None and judges else {}
            asked = {text: said[text] for text in what if text in said}
            self._judges = [
                Judge(label_of(e), load_for(e, what, names, asked=asked, device=device)) for e in judges
            ]

    @torch.no_grad()
    def look(self, step: int, average: nn.Module, folder: Path) -> None:
        """Sheet, held-out loss and scores, and the best model so far."""
        was_training = average.training
        average.eval()
        loss = {LOSS: self._held_out_loss(average)} if len(self.tested_X) else {}
        scores = mean_scores(self._judges, self._drawn(average)) if self._judges else {}
        keep_best(folder, step, loss | scores, lambda path, facts: self.save(average, path, **facts))
        if self._recipe.samples.number:
            write_bytes(folder / "samples.png", self._sheet(average))
        average.train(was_training)

    def _held_out_loss(self, average: nn.Module) -> float:
        """Mean over a few batches, which are the same at every checkpoint."""
        count = min(len(self.tested_X), self._recipe.training.batch_size)
        device = next(average.parameters()).device
        losses = []
        for number in range(_HELD_OUT_BATCHES):
            generator = torch.Generator().manual_seed(step_seed(0, _NOT_A_STEP + number, 0))
            loss, _ = average(to_device(self._batch_of(self.tested_X, count, generator), device))
            losses.append(loss)
        return float(torch.stack(losses).mean())

    def _picked(self, count: int) -> tuple[Tensor, Sequence[Any]]:
        """Items spread over those held out, or over all if none are, and their labels or captions."""
        pool_X = self.tested_X if len(self.tested_X) else self.trained_X
        picked_B = pool_X[torch.linspace(0, len(pool_X) - 1, count).long()]
        what = self._what(picked_B, torch.Generator().manual_seed(0))
        return picked_B, what.tolist() if isinstance(what, Tensor) else what

    def _generated(self, model: Any, what: Sequence[Any], first_seed: int) -> Tensor:
        """Images [B, 3, H, W] at the steps of the sheet."""
        asked: dict[str, Any] = {"prompts": what} if self._labels_X is None else {"labels": what}
        seeds = list(range(first_seed, first_seed + len(what)))
        steps = min(self._recipe.samples.steps, model.spec.num_tokens)
        images = Pipeline(model).generate(**asked, seeds=seeds, steps=steps, output_type="pt").images
        assert isinstance(images, Tensor)
        return images.float()

    def _drawn(self, average: nn.Module) -> Iterator[tuple[Tensor, Prompts]]:
        """What the judges score, a few images at a time, with what they show."""
        model, what = self.model(average), self._shown[1]
        for first in range(0, len(what), _JUDGED_TOGETHER):
            shown = what[first : first + _JUDGED_TOGETHER]
            yield self._generated(model, shown, first), Prompts(shown)

    def _sheet(self, average: nn.Module) -> bytes:
        """Generated images above those of the same class or caption."""
        picked_B, what = self._picked(self._recipe.samples.number)
        images = self._generated(self.model(average), what, 0).cpu()
        size = images.shape[-1]
        real = torch.stack([self._source.read(int(i), size) for i in self._encoded.items[picked_B]]) / 255
        return side_by_side([images, real])

    def model(self, trainer: nn.Module) -> Any:
        """The model on the device of the trainer."""
        recipe = self._recipe
        model: Any = self.task.model(trainer, recipe.sampling, recipe.steps)
        return model.to(next(trainer.parameters()).device).eval()

    def save(self, trainer: nn.Module, folder: Path, **more: object) -> None:
        """A model folder in half precision, with where it comes from."""
        recipe, source = self._recipe, self._source
        data = f"{source.name}: {len(self.trained_X)} images, {len(self.tested_X)} held out"
        settings = asdict(recipe)
        kept = ("family", "data", "tokenizer", "size", "network", "objective", "initial", "source")
        facts = {"data": data, "licence": source.licence, "settings": {key: settings[key] for key in kept}}
        facts |= source.facts | more
        made_by = provenance(recipe.name, recipe.training, folder.parent, **facts)
        self.model(trainer).save_pretrained(folder, provenance=made_by, dtype=torch.float16)
        write_notice(folder, source.notice, *map(notice_of, (recipe.tokenizer, recipe.initial)))


def base_recipe(family: str, training: TrainingConfig, **settings: Any) -> BaseModelRecipe:
    """A recipe with the family's own defaults, of sampling also where `settings` say only some of it."""
    own = trainable(family)
    defaults: dict[str, Any] = {
        "network": own.unset,
        "objective": own.objective,
        "sampling": own.sampling,
        "name": family.replace("_", "-"),
    }
    chosen = defaults | settings
    chosen["sampling"] = chosen["sampling"].over(own.sampling)
    return BaseModelRecipe(family=family, training=training, **chosen)


def default_training() -> TrainingConfig:
    """For a small network on any images."""
    return TrainingConfig(
        num_steps=20_000,
        batch_size=64,
        learning_rate=1e-3,
        muon_learning_rate=2e-3,
        warmup_steps=200,
        precision="no",
        save_every=500,
    )
