"""Recipe of the two Scenes readers, `scenes-judge` and `scenes-reward`.

Commands: `swiftmask train scenes-judge`, `swiftmask train scenes-reward`. Data is a pure function of the
step: half scenes with one to three objects, half class images, blurred, brightened and with noise, as a
tokenizer would hand them over; one image in ten is broken on purpose (tiles shuffled, or two images
blended) and teaches the reader to see no object there.

Measured 2026-11-21 on about half a core each of a Xeon (AMX): 16 minutes (judge) and 12 (reward), of which
one to two measure; facts read right in clean images: 0.9999 or more for both (docs/scenes.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftmask.core.files import write_folder
from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes import (
    COLOURS,
    NUM_CLASSES,
    SHAPES,
    Scenes,
    caption_facts,
    check,
    class_scenes,
    concat_scenes,
    render,
    sample_scenes,
)
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.reader_views import broken, degraded
from swiftmask.recipes.runs import run_name
from swiftmask.rewards.scenes import NetworkReader
from swiftmask.rewards.scenes_networks import GRID, INPUT_SIZE, ReaderConfig, ReaderNetwork, Reading
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import Metrics, TrainingConfig, step_seed

HELD_OUT_SEED = 2**40
NUM_HELD_OUT = 10_000
_TRAINING_SEED = 2**41
_BROKEN_SHARE = 0.1
_NEAR = 0.3  # cells whose heat target exceeds this also learn what the object is


@dataclass(frozen=True, slots=True)
class ReaderBatch:
    """`broken_B` marks images in which there is nothing to read."""

    images_B3HW: Tensor
    scenes: Scenes
    broken_B: Tensor


def reader_batch(seed: int, step: int, batch_size: int) -> ReaderBatch:
    """The batch of one step."""
    generator = torch.Generator().manual_seed(step_seed(seed, step, 0))
    first = _TRAINING_SEED + seed * 2**48 + step * batch_size
    seeds_B = torch.arange(first, first + batch_size)
    labels_B = torch.randint(NUM_CLASSES, (batch_size - batch_size // 2,), generator=generator)
    scenes = concat_scenes(
        [sample_scenes(seeds_B[: batch_size // 2]), class_scenes(labels_B, seeds_B[batch_size // 2 :])]
    )
    scenes = scenes[torch.randperm(batch_size, generator=generator)]
    images_B3HW = render(scenes, INPUT_SIZE)
    broken_B = torch.rand(batch_size, generator=generator) < _BROKEN_SHARE
    images_B3HW = torch.where(broken_B[:, None, None, None], broken(images_B3HW, generator), images_B3HW)
    return ReaderBatch(degraded(images_B3HW, generator), scenes, broken_B)


def reader_loss(reading: Reading, scenes: Scenes, broken_B: Tensor) -> tuple[Tensor, Metrics]:
    """Centre heat maps, what and where at the centres, and facts about the whole image."""
    present_BO = (scenes.shape_BO >= 0) & ~broken_B[:, None]
    target_BOHW, offset_BOHWX = _heat_targets(scenes)
    target_BOHW = target_BOHW * present_BO[..., None, None]
    heat_BHW = F.binary_cross_entropy_with_logits(reading.heat_BHW, target_BOHW.amax(dim=1), reduction="none")
    heat = heat_BHW.sum(dim=(1, 2)).mean()
    weight_BOHW = target_BOHW * (target_BOHW > _NEAR)
    weight_BOHW = weight_BOHW / weight_BOHW.sum().clamp(min=1.0)
    named = (
        (reading.shape_BHWK, scenes.shape_BO),
        (reading.colour_BHWK, scenes.colour_BO),
        (reading.size_BHWK, scenes.size_BO),
    )
    what = torch.stack([_named_loss(logits, index_BO, weight_BOHW) for logits, index_BO in named]).sum()
    miss_BOHW = (reading.offset_BHWX[:, None] - offset_BOHWX).abs().sum(dim=-1)
    where = (miss_BOHW * weight_BOHW).sum()
    whole = _whole_loss(reading, scenes, broken_B, present_BO)
    return 0.3 * heat + what + where + whole, {"heat": heat, "what": what, "where": where, "whole": whole}


def train_step(model: nn.Module, batch: ReaderBatch) -> tuple[Tensor, Metrics]:
    """One objective evaluation for `training.loop.train`."""
    reading, _ = model(batch.images_B3HW)
    return reader_loss(reading, batch.scenes, batch.broken_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderRecipe:
    """One reader: its network, and how it is trained.

    Attributes:
        name: "scenes-judge" or "scenes-reward", the folder its weights are bundled in.
    """

    name: str
    network: ReaderConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train, or continue, in `folder`, and measure; returns `folder/model`."""
        torch.manual_seed(self.training.seed)
        start = ReaderNetwork(self.network)
        network = train(
            start,
            self.batch,
            train_step,
            self.training,
            folder,
            name=run_name(self.name, start, self.network),
            on_log=on_log,
        )
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        accuracy = held_out_accuracy(NetworkReader(network.eval().requires_grad_(False)))
        write_folder(
            folder / "model",
            network.state_dict(),
            config=asdict(self.network),
            provenance=provenance(
                self.name,
                self.training,
                folder,
                data="Scenes (swiftmask.data.scenes)",
                parameters=num_parameters,
                held_out_seeds=[HELD_OUT_SEED, HELD_OUT_SEED + NUM_HELD_OUT],
                held_out_accuracy=accuracy,
            ),
            dtype=torch.float16,
        )
        return folder / "model"

    def batch(self, step: int, rank: int, num_ranks: int) -> ReaderBatch:
        """The batch of one step."""
        return reader_batch(self.training.seed + 1000 * rank, step, self.training.batch_size // num_ranks)


def reader_recipe(name: str, network: ReaderConfig, *, seed: int, num_steps: int) -> ReaderRecipe:
    """The optimisation both readers share."""
    training = TrainingConfig(
        num_steps=num_steps, batch_size=32, learning_rate=2e-3, ema_decay=0.998, seed=seed
    )
    return ReaderRecipe(name=name, network=network, training=training)


def held_out_accuracy(reader: NetworkReader, num_pictures: int = NUM_HELD_OUT) -> dict[str, float]:
    """Share of all facts (number, shapes, colours, sizes, relation, background) read right in clean images.

    `scenes` have one to three objects, `classes` are class images; `*_rendered_48` renders at 48 pixels,
    `*_all_right` is the share of images without any mistake.
    """
    seeds_B = torch.arange(HELD_OUT_SEED, HELD_OUT_SEED + num_pictures)
    parts = {"scenes": sample_scenes(seeds_B), "classes": class_scenes(seeds_B % NUM_CLASSES, seeds_B)}
    result = {}
    for part, scenes in parts.items():
        for suffix, size in (("", INPUT_SIZE), ("_rendered_48", 48)):
            num_true_B, num_stated_B = _read_in_chunks(reader, scenes, size)
            result[part + suffix] = round(float(num_true_B.sum() / num_stated_B.sum()), 5)
            result[f"{part}{suffix}_all_right"] = round(float((num_true_B == num_stated_B).float().mean()), 5)
    return result


def _read_in_chunks(reader: NetworkReader, scenes: Scenes, size: int) -> tuple[Tensor, Tensor]:
    counts = []
    for start in range(0, len(scenes), 500):
        part = scenes[start : start + 500]
        counts.append(torch.stack(check(caption_facts(part), reader.read(render(part, size)).to("cpu"))))
    num_true_B, num_stated_B = torch.cat(counts, dim=1)
    return num_true_B, num_stated_B


def _heat_targets(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """A bump of one cell's width around every centre, and the way from each cell to that centre, in cells."""
    cells_W = torch.arange(GRID, device=scenes.x_BO.device) + 0.5
    dx_BOW = scenes.x_BO[..., None] * GRID - cells_W
    dy_BOH = scenes.y_BO[..., None] * GRID - cells_W
    squared_BOHW = dx_BOW[:, :, None, :] ** 2 + dy_BOH[:, :, :, None] ** 2
    offset_BOHWX = torch.stack(torch.broadcast_tensors(dx_BOW[:, :, None, :], dy_BOH[:, :, :, None]), dim=-1)
    return torch.exp(-squared_BOHW / 2), offset_BOHWX


def _named_loss(logits_BHWK: Tensor, index_BO: Tensor, weight_BOHW: Tensor) -> Tensor:
    log_probs_BKHW = logits_BHWK.log_softmax(dim=-1).permute(0, 3, 1, 2)
    batch_B1 = torch.arange(len(index_BO), device=index_BO.device)[:, None]
    return -(log_probs_BKHW[batch_B1, index_BO.clamp(min=0)] * weight_BOHW).sum()


def _whole_loss(reading: Reading, scenes: Scenes, broken_B: Tensor, present_BO: Tensor) -> Tensor:
    whole = ~broken_B
    pattern_B = F.cross_entropy(reading.pattern_BK, scenes.pattern_B, reduction="none")
    background_B = F.cross_entropy(reading.background_BK, scenes.background_B, reduction="none")
    count = F.cross_entropy(reading.count_BK, scenes.count_B * whole)
    has_shape_BK = _any_of(scenes.shape_BO, present_BO, len(SHAPES))
    has_colour_BK = _any_of(scenes.colour_BO, present_BO, len(COLOURS))
    has = F.binary_cross_entropy_with_logits(reading.has_shape_BK, has_shape_BK)
    has = has + F.binary_cross_entropy_with_logits(reading.has_colour_BK, has_colour_BK)
    return ((pattern_B + background_B) * whole).mean() + 0.5 * (count + has)


def _any_of(index_BO: Tensor, present_BO: Tensor, num_values: int) -> Tensor:
    one_hot_BOK = F.one_hot(index_BO.clamp(min=0), num_values) * present_BO[..., None]
    return one_hot_BOK.amax(dim=1).float()
