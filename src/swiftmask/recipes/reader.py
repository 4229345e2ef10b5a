"""reader: a judge or a reward for your own categories: what an image shows, by columns of its metadata.

A table of one run says nothing of what the same network was trained against: train two, a reward and a judge
of another `network` and seed, and train nothing against the judge.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.core.files import write_folder
from swiftmask.core.ranges import check_fields
from swiftmask.data.encoded import EncodedImages, encoded_images
from swiftmask.data.images.pixels import to_bytes
from swiftmask.data.sources import DataConfig, Source, held_out, labels_of, open_source
from swiftmask.recipes.provenance import provenance, write_notice
from swiftmask.recipes.reader_views import ViewConfig, broken, views
from swiftmask.recipes.runs import OnLog, fingerprint, run_name, training_device
from swiftmask.recipes.tokenizer import cached_pixels, process_share, reconstructed, reported
from swiftmask.recipes.tokenizer_files import read_tokenizer
from swiftmask.rewards.reader_networks import WIDTHS, ReaderNetwork, ReaderSettings, Reading
from swiftmask.training.loop import train
from swiftmask.training.processes import processes
from swiftmask.training.setup import Metrics, TrainingConfig, step_seed

CLASS = "class"
"""The column of a source whose classes are subfolders."""

_NOT_A_STEP = 1 << 40
"""Seeds of the views that are measured are those of a step that no run reaches."""

_MEASURED_TOGETHER, _TOP = 100, 5


@dataclass(frozen=True, slots=True)
class ReaderBatch:
    """Views of images, the number of their value in each column, and in which there is nothing to read.

    Attributes:
        images_B3HW: float32 in [0, 1].
        values_BC: int64.
        broken_B: bool.
        columns: their names.
    """

    columns: tuple[str, ...]
    images_B3HW: Tensor
    values_BC: Tensor
    broken_B: Tensor


def reader_loss(reading: Reading, batch: ReaderBatch) -> tuple[Tensor, Metrics]:
    """Cross-entropy of all columns in nats, summed; of broken images against all values alike."""
    loss = reading.features_BD.new_zeros(())
    metrics: Metrics = {}
    whole_B = ~batch.broken_B
    values = batch.values_BC.unbind(1)
    for name, logits_BV, value_B in zip(batch.columns, reading.logits, values, strict=True):
        log_probs_BV = logits_BV.log_softmax(-1)
        right_B = log_probs_BV.gather(1, value_B[:, None])[:, 0]
        loss = loss - torch.where(whole_B, right_B, log_probs_BV.mean(-1)).mean()
        hit_B = (logits_BV.argmax(-1) == value_B) & whole_B
        metrics[f"{name}_right"] = hit_B.sum() / whole_B.sum().clamp(min=1)
    return loss, metrics


def train_step(model: Callable[..., Reading], batch: ReaderBatch) -> tuple[Tensor, Metrics]:
    """One objective evaluation for `training.loop.train`."""
    return reader_loss(model(batch.images_B3HW), batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderRecipe:
    """Data, columns, network, views and optimisation of a reader.

    Attributes:
        data: a folder of images or another source (data/sources/opening.py).
        columns: of the metadata, each with a softmax of its own; empty takes the source's classes.
        network: "conv" (residual convolutions) or "transformer" (with ConvNeXt blocks below).
        size: width by name.
        num_features: of the description that all columns are read from.
        resolution: side in pixels that images are read at.
        tokenizer: folder of a tokenizer or of a model, through which a share of the images is seen; empty
            leaves that out.
        codec_share: of the images that are seen through it.
        broken_share: of the images that are broken on purpose, and teach the reader to be sure of nothing.
        all_images: train on held-out images, too. Accuracy is then that on other views of them.
        num_views: that accuracy is measured on.
    """

    data: str = ""
    columns: tuple[str, ...] = ()
    network: Literal["conv", "transformer"] = "conv"
    size: Literal["tiny", "small", "base"] = "small"
    num_features: int = 256
    resolution: int = 64
    tokenizer: str = ""
    codec_share: float = 0.3
    broken_share: float = 0.1
    all_images: bool = False
    num_views: int = 2000
    views: ViewConfig = ViewConfig()
    source: DataConfig = DataConfig()
    training: TrainingConfig
    name: str = "reader"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.resolution % 16:
            raise ValueError(f"resolution must be a multiple of 16, got {self.resolution}")
        if len({*self.columns}) < len(self.columns):
            raise ValueError(f"columns must differ, got {', '.join(self.columns)}")

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, for `reader=` in rewards and scorers.

        Errors: ValueError or FileNotFoundError for data, columns or a tokenizer that cannot be used.
        """
        source = open_source(self.data, self.source)
        columns = columns_of(source, self.columns)
        tokenizer = read_tokenizer(self.tokenizer) if self.tokenizer else None
        pixels = cached_pixels(source, self.resolution, folder / "pixels", on_log)
        coded = None
        if tokenizer is not None:
            codec: Any = tokenizer.codec.to(training_device())
            coded = encoded_images(
                source,
                tokenizer.resolution,
                lambda images_B3HW: to_bytes(
                    _sized(reconstructed(codec, images_B3HW.to(training_device())), self.resolution)
                ),
                folder / "reconstructions",
                encoder=f"reconstructions {self.resolution} {fingerprint(codec)}",
                share=process_share(),
                on_progress=reported(on_log, "reconstructing images"),
            )
            if not torch.equal(coded.items, pixels.items):
                raise ValueError(f"not all images of {source.name} could be read twice: run again")
        seen = _Seen(self, source, columns, pixels, coded)
        settings = ReaderSettings(
            name=self.name,
            network=self.network,
            width=WIDTHS[self.network][self.size],
            num_features=self.num_features,
            resolution=self.resolution,
            columns={name: list(values) for name, (values, _) in columns.items()},
        )
        torch.manual_seed(self.training.seed)
        start = ReaderNetwork(settings)
        told = (settings, self.views, self.codec_share, self.broken_share, source.identity, seen.told)
        network = train(
            start,
            seen.batch,
            train_step,
            self.training,
            folder,
            name=run_name(self.name, start, *told),
            on_log=on_log,
        )
        if processes().is_main_process:
            self._write(folder / "model", network.eval().requires_grad_(False), source, seen)
        processes().wait_for_everyone()
        return folder / "model"

    def _write(self, folder: Path, network: ReaderNetwork, source: Source, seen: "_Seen") -> None:
        """The weights in float16, with how often they are right."""
        content = asdict(self)
        kept = [key for key in content if key not in ("training", "name")]
        facts: dict[str, object] = {
            "data": f"{source.name}: {len(seen.trained_X)} images, {len(seen.tested_X)} held out",
            "licence": source.licence,
            "settings": {key: content[key] for key in kept},
            "measured": measure(network, seen.held_out_views(), moved=True),
            "measured_unmoved": measure(network, seen.held_out_views(), moved=False),
            "measured_on": f"views of {seen.measured_on}",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }
        facts |= source.facts
        write_folder(
            folder,
            network.state_dict(),
            config=asdict(network.settings),
            provenance=provenance(self.name, self.training, folder.parent, **facts),
            dtype=torch.float16,
        )
        write_notice(folder, source.notice)


class _Seen:
    """The images of a run, and what is seen of them."""

    def __init__(
        self,
        recipe: ReaderRecipe,
        source: Source,
        columns: "Columns",
        pixels: EncodedImages,
        coded: EncodedImages | None,
    ) -> None:
        self._recipe, self._pixels, self._coded = recipe, pixels, coded
        self._columns = tuple(columns)
        self._values_XC = torch.stack([number_X for _, number_X in columns.values()], 1)[pixels.items]
        out_X = held_out(source, recipe.source.held_out)[pixels.items]
        if recipe.all_images:
            out_X = torch.zeros_like(out_X)
        self.trained_X, self.tested_X = (~out_X).nonzero()[:, 0], out_X.nonzero()[:, 0]
        if not len(self.trained_X):
            raise ValueError(f"all images of {source.name} are held out: lower source.held_out")

    @property
    def measured_on(self) -> str:
        return "held-out images" if len(self.tested_X) else "trained images"

    @property
    def told(self) -> object:
        """What the result depends on beside weights and settings."""
        return self._values_XC.tolist(), self.trained_X.tolist()

    def batch(self, step: int, rank: int, num_ranks: int) -> ReaderBatch:
        """The views of one step, a function of the step alone."""
        training = self._recipe.training
        generator = torch.Generator().manual_seed(step_seed(training.seed, step, rank))
        count = training.batch_size // num_ranks
        chosen_X = self.trained_X
        return self._batch_of(
            chosen_X[torch.randint(len(chosen_X), (count,), generator=generator)], generator
        )

    def held_out_views(self) -> Iterator[tuple[ReaderBatch, ReaderBatch]]:
        """Images, spread over those that are measured, and one view of each."""
        pool_X = self.tested_X if len(self.tested_X) else self.trained_X
        places_N = torch.linspace(0, len(pool_X) - 1, self._recipe.num_views).long()
        for number, part_B in enumerate(pool_X[places_N].split(_MEASURED_TOGETHER)):
            generator = torch.Generator().manual_seed(step_seed(0, _NOT_A_STEP + number, 0))
            plain = ReaderBatch(
                self._columns,
                self._pixels.rows(part_B).float() / 255,
                self._values_XC[part_B],
                torch.zeros(len(part_B), dtype=torch.bool),
            )
            yield plain, self._batch_of(part_B, generator, broken_share=0.0)

    def _batch_of(
        self, picked_B: Tensor, generator: torch.Generator, *, broken_share: float | None = None
    ) -> ReaderBatch:
        recipe, count = self._recipe, len(picked_B)
        images_B3HW = self._pixels.rows(picked_B).float() / 255
        drawn_B3 = torch.rand(count, 3, generator=generator)
        if self._coded is not None:
            coded_B = drawn_B3[:, 0] < recipe.codec_share
            if coded_B.any():
                images_B3HW[coded_B] = self._coded.rows(picked_B[coded_B]).float() / 255
        if recipe.source.mirror:
            mirrored_B = drawn_B3[:, 1] < 0.5
            images_B3HW = torch.where(mirrored_B[:, None, None, None], images_B3HW.flip(-1), images_B3HW)
        share = recipe.broken_share if broken_share is None else broken_share
        broken_B = drawn_B3[:, 2] < share
        if broken_B.any():
            apart_B3HW = broken(images_B3HW, generator)
            images_B3HW = torch.where(broken_B[:, None, None, None], apart_B3HW, images_B3HW)
        seen_B3HW = views(images_B3HW, recipe.views, generator)
        return ReaderBatch(self._columns, seen_B3HW, self._values_XC[picked_B], broken_B)


@torch.no_grad()
def measure(
    network: ReaderNetwork, batches: Iterator[tuple[ReaderBatch, ReaderBatch]], *, moved: bool
) -> dict[str, float]:
    """Share of images whose value is the first, or among the first five, that the network names.

    Args:
        batches: images and views of them.
        moved: whether the views are read, and not the images.
    """
    names = list(network.settings.columns)
    device = next(network.parameters()).device
    ranks: dict[str, list[Tensor]] = {name: [] for name in names}
    for plain, view in batches:
        batch = view if moved else plain
        reading = network(batch.images_B3HW.to(device))
        for name, logits_BV, value_B in zip(names, reading.logits, batch.values_BC.unbind(1), strict=True):
            own_B1 = logits_BV.cpu().gather(1, value_B[:, None])
            ranks[name].append((logits_BV.cpu() > own_B1).sum(-1))
    found: dict[str, float] = {}
    for name in names:
        rank_X = torch.cat(ranks[name])
        found[f"{name}_top1"] = round((rank_X == 0).float().mean().item(), 4)
        if len(network.settings.columns[name]) > 2 * _TOP:
            found[f"{name}_top5"] = round((rank_X < _TOP).float().mean().item(), 4)
    return found


Columns = dict[str, tuple[tuple[str, ...], Tensor]]
"""Values of each column, and the number of each item's, int64 [X]."""


def columns_of(source: Source, names: tuple[str, ...]) -> Columns:
    """Columns of a source, or its classes as the column "class".

    Errors: ValueError for a column that is not there or has one value alone, or no classes.
    """
    if not names:
        classes = labels_of(source)
        found: Columns = {CLASS: (classes.names, classes.labels_X)}
    else:
        found = {}
        for name in names:
            column = source.column(name)
            values = tuple(sorted({*column}))
            places = {value: i for i, value in enumerate(values)}
            found[name] = (values, torch.tensor([places[value] for value in column]))
    alone = next((name for name, (values, _) in found.items() if len(values) < 2), None)
    if alone is not None:
        raise ValueError(f"all images of {source.name} have the same {alone}: there is nothing to tell apart")
    return found


def _sized(images_B3HW: Tensor, side: int) -> Tensor:
    if images_B3HW.shape[-1] == side:
        return images_B3HW
    return F.interpolate(images_B3HW, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


def recipe() -> ReaderRecipe:
    """`swiftmask train reader data=products/ columns=kind,colour`; without `columns`, of the subfolders.

    On Emoji, Muon needed a quarter of AdamW's updates (docs/log.md). The length is a first guess.
    """
    training = TrainingConfig(
        num_steps=3000,
        batch_size=64,
        learning_rate=2e-3,
        muon_learning_rate=4e-3,
        warmup_steps=200,
        ema_decay=0.998,
        precision="no",
        save_every=200,
    )
    return ReaderRecipe(training=training)
