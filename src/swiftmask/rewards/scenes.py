"""Readers of Scenes: networks that read the facts back from pixels, so that a caption can be scored in a
image.

`load_reward` is what reinforcement learning may train against; `load_judge`, another architecture with
another seed, is never trained against and is what evaluation reports. Score = share of the stated facts
that hold (data/scenes/facts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftmask.core.files import load_strict
from swiftmask.core.reading import read_tensors
from swiftmask.core.settings import check_sizes, read_settings
from swiftmask.data.scenes import MAX_OBJECTS, SIZES, Facts, Scenes, check_kinds, class_facts, parse_captions
from swiftmask.rewards.scenes_networks import GRID, INPUT_SIZE, ReaderConfig, ReaderNetwork, Reading

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""`reward(images_B3HW, prompts) -> scores_B`, images in [0, 1]."""

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

_EXPECTED = (
    "a reader is a folder with config.json and model.safetensors; train one with `swiftmask train "
    "scenes-judge` or `scenes-reward`"
)

_HEAT_THRESHOLD = 0.4
_NOMINAL_RADIUS = (8 / 64, 13.5 / 64)
_CHUNK = 256


class SceneReader(Protocol):
    """Reads images `images_B3HW` in [0, 1] of any size."""

    def features(self, images_B3HW: Tensor) -> Tensor:
        """`features_BD`, one description per image: what the Frechet distance compares."""
        ...

    def read(self, images_B3HW: Tensor) -> Scenes:
        """What the images show: objects from left to right, radius nominal, texture phases unknown (0)."""
        ...


class NetworkReader(nn.Module):
    """A `SceneReader` around a trained network."""

    def __init__(self, network: ReaderNetwork) -> None:
        super().__init__()
        self.network = network

    @torch.inference_mode()
    def features(self, images_B3HW: Tensor) -> Tensor:
        return torch.cat([self._run(chunk)[1] for chunk in images_B3HW.split(_CHUNK)])

    @torch.inference_mode()
    def read(self, images_B3HW: Tensor) -> Scenes:
        readings = [self._run(chunk)[0] for chunk in images_B3HW.split(_CHUNK)]
        return scenes_of(Reading(*(torch.cat(part) for part in zip(*map(_parts, readings), strict=True))))

    def _run(self, images_B3HW: Tensor) -> tuple[Reading, Tensor]:
        parameter = self.network.map_head.weight
        return self.network(to_input(images_B3HW.to(parameter.device, parameter.dtype)))


def load_judge(device: torch.device | str = "cpu") -> NetworkReader:
    """The bundled reader that evaluation reports; nothing is ever trained against it."""
    return load_reader(WEIGHTS / "scenes-judge", device)


def load_reward(device: torch.device | str = "cpu") -> NetworkReader:
    """The bundled reader that reinforcement learning may use as its reward."""
    return load_reader(WEIGHTS / "scenes-reward", device)


def load_reader(folder: str | Path, device: torch.device | str = "cpu") -> NetworkReader:
    """A reader from its folder of `config.json` and `model.safetensors`."""
    folder = Path(folder)
    weights = folder / "model.safetensors"
    config = read_settings(ReaderConfig, folder / "config.json", expected=_EXPECTED)
    if not weights.is_file():
        raise FileNotFoundError(f"no {weights}: {_EXPECTED}")
    state = read_tensors(weights)
    check_sizes(config, state, source=str(folder / "config.json"))
    with torch.device("meta"):
        network = ReaderNetwork(config)
    load_strict(network, state, source=str(weights))
    return NetworkReader(network).to(device).eval().requires_grad_(False)


def score(reader: SceneReader, images_B3HW: Tensor, facts: Facts) -> Tensor:
    """`score_B` in [0, 1]: the share of the stated facts that hold in each image."""
    num_true_BK, num_stated_BK = found(reader, images_B3HW, facts)
    return num_true_BK.sum(dim=1) / num_stated_BK.sum(dim=1).clamp(min=1)


def found(reader: SceneReader, images_B3HW: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """How many of the stated facts of each kind (`FACT_KINDS`) the reader finds in each image, and how many
    are stated: `num_true_BK, num_stated_BK`.
    """
    scenes = reader.read(images_B3HW)
    return check_kinds(facts.to(scenes.count_B.device), scenes)


def caption_reward(reader: SceneReader) -> Reward:
    """Scores images against captions of the Scenes grammar."""
    return lambda images_B3HW, prompts: score(reader, images_B3HW, parse_captions(prompts))


def class_reward(reader: SceneReader) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores images against class labels: one object, its shape and its colour."""
    return lambda images_B3HW, labels_B: score(reader, images_B3HW, class_facts(labels_B))


def to_input(images_B3HW: Tensor) -> Tensor:
    """Images at the size the networks read."""
    if images_B3HW.shape[-2:] == (INPUT_SIZE, INPUT_SIZE):
        return images_B3HW
    return F.interpolate(images_B3HW, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)


def scenes_of(reading: Reading) -> Scenes:
    """Decode: up to three peaks of the heat map, from left to right, each read at its own cell."""
    cell_BO, present_BO = _peaks(reading.heat_BHW)
    x_BO, y_BO = _centres(reading.offset_BHWX, cell_BO)
    order_BO = x_BO.masked_fill(~present_BO, 2.0).argsort(dim=1)
    cell_BO, present_BO = cell_BO.gather(1, order_BO), present_BO.gather(1, order_BO)
    x_BO, y_BO = x_BO.gather(1, order_BO), y_BO.gather(1, order_BO)
    size_BO = _choice(reading.size_BHWK, cell_BO)
    radius_BO = torch.tensor(_NOMINAL_RADIUS, device=x_BO.device)[size_BO]
    zero_B = torch.zeros_like(x_BO[:, 0])
    assert len(SIZES) == len(_NOMINAL_RADIUS)
    return Scenes(
        count_B=present_BO.sum(dim=1),
        shape_BO=_choice(reading.shape_BHWK, cell_BO).masked_fill(~present_BO, -1),
        colour_BO=_choice(reading.colour_BHWK, cell_BO).masked_fill(~present_BO, -1),
        size_BO=size_BO.masked_fill(~present_BO, -1),
        x_BO=x_BO.masked_fill(~present_BO, 0.0),
        y_BO=y_BO.masked_fill(~present_BO, 0.0),
        radius_BO=radius_BO.masked_fill(~present_BO, 0.0),
        tilt_BO=torch.zeros_like(x_BO),
        pattern_B=reading.pattern_BK.argmax(dim=1),
        background_B=reading.background_BK.argmax(dim=1),
        phase_BX=torch.zeros_like(x_BO[:, :2]),
        angle_B=zero_B,
        period_B=zero_B + 1 / 5,
    )


def _parts(reading: Reading) -> list[Tensor]:
    return [getattr(reading, name) for name in Reading.__slots__]


def _peaks(heat_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of the three highest local maxima (objects are three cells apart), and whether each counts."""
    heat_BHW = heat_BHW.sigmoid()
    highest_BHW = F.max_pool2d(heat_BHW[:, None], 5, 1, 2)[:, 0]
    peak_BL = torch.where(heat_BHW == highest_BHW, heat_BHW, 0.0).flatten(1)
    height_BO, cell_BO = peak_BL.topk(MAX_OBJECTS, dim=1)
    return cell_BO, height_BO > _HEAT_THRESHOLD


def _centres(offset_BHWX: Tensor, cell_BO: Tensor) -> tuple[Tensor, Tensor]:
    offset_BOX = offset_BHWX.flatten(1, 2).gather(1, cell_BO[..., None].expand(-1, -1, 2))
    x_BO = (cell_BO % GRID + 0.5 + offset_BOX[..., 0]) / GRID
    y_BO = (cell_BO // GRID + 0.5 + offset_BOX[..., 1]) / GRID
    return x_BO, y_BO


def _choice(logits_BHWK: Tensor, cell_BO: Tensor) -> Tensor:
    chosen_BL = logits_BHWK.argmax(dim=-1).flatten(1)
    return chosen_BL.gather(1, cell_BO)
