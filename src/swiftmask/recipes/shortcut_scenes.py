"""A shortcut (MIGM-Shortcut, arXiv 2602.23996) of any model that draws Scenes: settings, the run, and what it
leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.methods.shortcut import (
    RotaryShortcut,
    RotaryShortcutConfig,
    Shortcut,
    ShortcutConfig,
    write_shortcut,
)
from swiftmask.methods.shortcut.features import AnyShortcut
from swiftmask.methods.shortcut.rounds import RoundsConfig, TeacherRounds
from swiftmask.methods.shortcut.training import ShortcutTrainer, train_step
from swiftmask.recipes.captioned_scenes import PROMPT_SEED, World
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import OnLog, require_model, run_name, training_device
from swiftmask.registry import describe, generator_class
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneShortcutRecipe:
    """Sizes and optimisation of a shortcut.

    Attributes:
        name: the base's, and "-shortcut".
        base: model folder of the teacher.
        world: what a base that draws captions is asked for; the one it was trained on.
        full_steps: the budget written into the shortcut's config as the default.
    """

    name: str
    base: str
    shortcut: ShortcutConfig | RotaryShortcutConfig
    rounds: RoundsConfig
    training: TrainingConfig
    world: World = World()
    full_steps: int = 6

    def __post_init__(self) -> None:
        check_fields(self)
        self.rounds.check(self.training)
        if self.full_steps > max(self.rounds.step_counts):
            raise ValueError(
                f"full_steps must be at most the longest of rounds.step_counts "
                f"({max(self.rounds.step_counts)}), got {self.full_steps}"
            )

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(shortcut=...)`.

        Errors: FileNotFoundError if there is no base. ValueError for settings that do not go together.
        """
        teacher = self._read_base()
        name = run_name(self.name, teacher, self.shortcut, self.rounds, self.world)
        torch.manual_seed(self.training.seed)
        shortcut = self._untrained(teacher)
        precision = torch.float32 if self.training.precision == "no" else torch.bfloat16
        teacher.to(device=training_device(), dtype=precision)
        rounds = TeacherRounds(
            teacher,
            self.rounds,
            self._labels_of(teacher),
            shortcut,
            accumulate=self.training.accumulate,
        )
        trained = train(
            ShortcutTrainer(shortcut, teacher, self.rounds),
            rounds.batch,
            train_step,
            self.training,
            folder,
            name=name,
            on_log=on_log,
        )
        write_shortcut(
            folder / "model",
            trained.shortcut.eval(),
            base=teacher.spec,
            base_name=self.base_name,
            full_steps=self.full_steps,
            provenance=provenance(self.name, self.training, rounds=asdict(self.rounds)),
            dtype=torch.float16,
        )
        return folder / "model"

    @property
    def base_name(self) -> str:
        return self.name.removesuffix("-shortcut")

    def classes(self, number: int, count: int) -> list[int]:
        """What a round shows of a base that draws classes: all of them in turn, round after round."""
        return [(number * count + i) % NUM_CLASSES for i in range(count)]

    def captions(self, number: int, count: int) -> list[str]:
        """What a round shows of a base that draws captions: those of pictures it was not trained on."""
        return self.world.captions(PROMPT_SEED + number * count + torch.arange(count))

    def _labels_of(self, base: MaskedGenerator) -> Callable[[int, int], Sequence[int] | Sequence[str]]:
        return self.captions if base.spec.draws == "prompt" else self.classes

    def _read_base(self) -> Any:
        """Frozen, in float32 on the CPU."""
        folder = require_model(self.base, setting="base", trained_by=self.base_name)
        return generator_class(describe(folder).family).from_pretrained(folder)

    def _untrained(self, base: MaskedGenerator) -> AnyShortcut:
        """It starts as a copy of the old features."""
        if isinstance(self.shortcut, RotaryShortcutConfig):
            return RotaryShortcut(self.shortcut).start_as_copy()
        return Shortcut(self.shortcut).start_as_copy().fit_to_embeddings(_embeddings(base))


def _embeddings(base: MaskedGenerator) -> torch.Tensor:
    """Every code at every position: [L, V, D]. Errors: ValueError for a base without codes."""
    spec = base.spec
    if spec.codebook_size is None:
        raise ValueError(f"{spec.name} has no codes, and this shortcut reads codes: use another base")
    codes_V = torch.arange(spec.codebook_size, device=base.device)
    positions_L1 = torch.arange(spec.num_tokens, device=base.device)[:, None]
    codes_LV, positions_LV = torch.broadcast_tensors(codes_V, positions_L1)
    return base.embed(codes_LV, positions_LV)
