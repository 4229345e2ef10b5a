"""Scenes as a data source: images rendered from seeds, with a class or a caption each."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor

from swiftmask.data.images.pixels import to_bytes
from swiftmask.data.scenes import (
    CLASS_NAMES,
    NUM_CLASSES,
    Scenes,
    World,
    class_attributes,
    class_scenes,
    render,
)
from swiftmask.data.sources.source import Classes

DATA_SEED = 1 << 40
"""Training images have seeds from here on; evaluation references lie below."""

PROMPT_SEED = DATA_SEED + (1 << 43)
"""Captions that are generated for and never learned from (Speed-RL, shortcuts) have seeds from here on."""

_TOGETHER, _BLOCKS = 64, 4
"""Images rendered together, and how many such blocks are kept."""


@dataclass(frozen=True, eq=False)
class SceneSource:
    """The first `number` training images of Scenes.

    Attributes:
        world: None gives one object of each class in turn; else captioned scenes.
    """

    number: int
    world: World | None = None
    licence: str = "Apache-2.0"
    _rendered: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    @property
    def name(self) -> str:
        return "scenes" if self.world is None else f"scenes {self.world.name}"

    @property
    def identity(self) -> str:
        return f"{self.name}, renderer 1"

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(str(seed) for seed in range(DATA_SEED, DATA_SEED + self.number))

    @cached_property
    def classes(self) -> Classes | None:
        if self.world is not None:
            return None
        labels_X = self._seeds(range(self.number)) % NUM_CLASSES
        return Classes(CLASS_NAMES, labels_X, class_attributes(torch.arange(NUM_CLASSES)))

    @property
    def facts(self) -> dict[str, object]:
        """What captioned scenes show, by which they are judged."""
        return {} if self.world is None else {"world": asdict(self.world)}

    @property
    def notice(self) -> str:
        return ""

    @property
    def column_names(self) -> tuple[str, ...]:
        return ()

    @property
    def splits(self) -> tuple[str, ...]:
        return ()

    def read(self, index: int, size: int) -> Tensor:
        block, place = divmod(index, _TOGETHER)
        with self._lock:  # readers are threads, and images are cheap in blocks
            if (block, size) not in self._rendered:
                indices = range(block * _TOGETHER, min(self.number, (block + 1) * _TOGETHER))
                pixels_B3HW = to_bytes(render(self._scenes(indices), size))
                while len(self._rendered) >= _BLOCKS:
                    del self._rendered[next(iter(self._rendered))]
                self._rendered[block, size] = pixels_B3HW
            return self._rendered[block, size][place]

    def stamp(self, index: int) -> str:
        return ""

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def column(self, name: str) -> tuple[str, ...]:
        raise ValueError(f"{self.name} has no columns, got {name!r}")

    def notices(self) -> list[str]:
        return []

    @cached_property
    def _captions(self) -> list[tuple[str, ...]]:
        if self.world is None:
            return [()] * self.number
        return [(text,) for text in self.world.captions(self._seeds(range(self.number)))]

    def _seeds(self, indices: "range | list[int]") -> Tensor:
        return DATA_SEED + torch.tensor(list(indices), dtype=torch.int64)

    def _scenes(self, indices: range) -> Scenes:
        seeds = self._seeds(indices)
        return class_scenes(seeds % NUM_CLASSES, seeds) if self.world is None else self.world.scenes(seeds)
