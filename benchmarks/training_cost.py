"""Memory and hours of a training in configs/ on one card, from the operations of its updates at real size.

    python benchmarks/training_cost.py configs/maskgit-512-shortcut.yaml
    python benchmarks/training_cost.py configs/mar-b-marval.yaml training.accumulate=32 --tflops 312

The recipe's first updates run on a device without values (tools/fake_gpu.py), with a base model of the
released size. Of Meissonic and Lumina-DiMOO, whose blocks are all alike, models of one and two blocks run (of
Meissonic, one double and two single blocks count as one), and every number is extrapolated linearly to the
released depth. Speed-RL is counted so in two and in four decode steps, too; its memory is that in four, which
bounds that of more. Operations are those of matrix products and attention, in the rounds that a method
generates and in its updates. Memory is the most that all tensors take at one time; an allocator adds some to
it. Hours are operations over a share of the card's peak. Nothing is timed.
"""

import argparse
import json
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from swiftmask.cli.overrides import override, read_config_file
from swiftmask.cli.random_models import (
    DIMOO,
    dimoo_around,
    meissonic_around,
    random_names,
    random_pipeline,
)
from swiftmask.methods.marval import training as marval_training
from swiftmask.methods.shortcut import training as shortcut_training
from swiftmask.methods.shortcut.rounds import TeacherRounds
from swiftmask.methods.shortcut.sizes import sizes_for
from swiftmask.methods.shortcut.weights import build
from swiftmask.methods.speed_rl import Prompts, Rounds, SpeedRLTrainer
from swiftmask.methods.speed_rl.likelihood import ACTIVATIONS
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.weights import RELEASED
from swiftmask.models.meissonic.network import Transformer
from swiftmask.models.meissonic.weights import RELEASED as RELEASED_MEISSONIC
from swiftmask.recipes.marval import MarvalRecipe
from swiftmask.recipes.provenance import measurement
from swiftmask.recipes.shortcut import ShortcutRecipe
from swiftmask.recipes.speed_rl import SpeedRLRecipe
from swiftmask.registry import recipe_module
from swiftmask.rewards.clip import ClipSimilarity
from swiftmask.rewards.clip_preprocessing import Preprocessing
from swiftmask.training.loop import Run, advance, begin
from swiftmask.training.setup import Batches, TrainingConfig, train_step

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from fake_gpu import DEVICE, DeviceTensor, Rehearsal, found_by_accelerate


@dataclass(frozen=True, slots=True)
class Training:
    """What the loop is given.

    Attributes:
        updates_per_round: that learn from what one round generates.
        num_rounds: after which the work repeats, but for what is drawn at random.
        scale: images of the training for each one that is measured.
        held_bytes: that those which are not measured take in an update.
    """

    trainer: nn.Module
    batches: Batches
    config: TrainingConfig
    updates_per_round: int
    num_rounds: int
    scale: float = 1.0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one training; memory in bytes, operations of one update on average.

    Attributes:
        weights_bytes: base model, trained weights and their average, before the first update.
        round_peak_bytes, update_peak_bytes: the most while generating, and while learning.
        round_flops, update_flops: to make what is learned from, and to learn from it.
    """

    config: str
    base: str
    base_parameters: int
    trained_parameters: int
    weights_bytes: int
    round_peak_bytes: int
    update_peak_bytes: int
    num_steps: int
    measured_steps: int
    round_flops: float
    update_flops: float

    @property
    def peak_bytes(self) -> int:
        return max(self.round_peak_bytes, self.update_peak_bytes)

    def hours(self, flops_per_s: float) -> float:
        return self.num_steps * (self.round_flops + self.update_flops) / flops_per_s / 3600


class Memory(TorchDispatchMode):
    """Bytes that tensors of the device take, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.peak_of_rounds = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, DeviceTensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._freed, key, storage.nbytes())
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def released_depth(name: str) -> int | None:
    """Blocks of a base model that is measured at lower depths; None of one that is measured whole."""
    if name == DIMOO:
        return RELEASED.depth
    return RELEASED_MEISSONIC[name].num_double_blocks if name in RELEASED_MEISSONIC else None


def released_model(name: str, dtype: torch.dtype, depth: int | None) -> Any:
    """A base model of a released size, as it is trained from, on the meta device.

    Args:
        depth: blocks; None is the released number.
    """
    depth = depth or released_depth(name)
    with torch.device("meta"):
        if name == DIMOO:  # at the size of its authors' images
            assert depth is not None
            return dimoo_around(Backbone(replace(RELEASED, depth=depth)).to(dtype)).sized(1024, 1024)
        if name in RELEASED_MEISSONIC:
            assert depth is not None
            sizes = RELEASED_MEISSONIC[name]
            single = depth * sizes.num_single_blocks // sizes.num_double_blocks
            sizes = replace(sizes, num_double_blocks=depth, num_single_blocks=single)
            return meissonic_around(Transformer(sizes).to(dtype), text_layers=24)
        return random_pipeline(name, device="meta", dtype=dtype).model


def shortcut(recipe: ShortcutRecipe, name: str, depth: int | None) -> tuple[Any, Training]:
    """As `ShortcutRecipe.run` puts it together."""
    half = recipe.training.precision != "no"
    base = released_model(name, torch.bfloat16 if half else torch.float32, depth).to_empty(device=DEVICE)
    rounds = recipe.rounds.of(base)
    network = build(sizes_for(base, recipe.size, recipe.network)).to(DEVICE)
    teacher = TeacherRounds(base, rounds, what_of(base), network, accumulate=recipe.training.accumulate)
    trainer = shortcut_training.ShortcutTrainer(network, base, rounds)
    repeats = (rounds.updates_per_round, len(rounds.step_counts))
    return base, Training(trainer, teacher.batch, recipe.training, *repeats)


def speed_rl(recipe: SpeedRLRecipe, name: str, depth: int | None) -> tuple[Any, Training]:
    """As `SpeedRLRecipe.run` puts it together, with PickScore as the reward and CLIP as what is held out.

    A round is measured on one forward's images of each number of steps: they go through one after the other.
    """
    base = released_model(name, torch.float32, depth).to_empty(device=DEVICE)
    config, size = recipe.planned(base)[1], recipe.training.batch_size
    fewer = min(size, config.images_per_forward * len(config.step_counts))
    config = replace(config, num_generations=fewer, generation_batch_size=fewer, steps_per_generation=1)
    training = replace(recipe.training, batch_size=fewer, accumulate=1)
    others = size // recipe.training.accumulate - fewer
    held = max(0, others) * base.spec.num_tokens * base.spec.width * 2 * 4  # null and reference features
    trainer = SpeedRLTrainer(base, config)
    prompts = Prompts(what_of(base)(0, config.num_prompts))
    scorers: Any = Towers(CLIP_HUGE, CLIP_LARGE)
    rounds = Rounds(trainer, prompts, scorers, training)
    scale = size / fewer
    return base, Training(trainer, rounds.batch, training, config.updates_per_round, 1, scale, held)


class Towers:
    """Stand-ins for scorers: CLIP's image encoders at real size. Texts are embedded once a run, not here."""

    def __init__(self, *sizes: dict[str, int]) -> None:
        self.names = tuple(str(size["hidden_size"]) for size in sizes)
        self.weights_M = torch.tensor([1.0] + [0.0] * (len(sizes) - 1))
        with torch.device("meta"):
            models = [CLIPModel(CLIPConfig(vision_config={"patch_size": 14, **size})) for size in sizes]
        seen = Preprocessing(224, (224, 224), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
        tokenizer: Any = None
        self._towers = [ClipSimilarity(m.to_empty(device=DEVICE), tokenizer, seen) for m in models]

    def score(self, images_B3HW: Tensor, prompts: Prompts) -> Tensor:
        return torch.stack([tower.embed_images(images_B3HW).sum(dim=1) for tower in self._towers])


CLIP_HUGE = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16)
CLIP_LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
"""Image encoders of PickScore and of CLIP score."""


def marval(recipe: MarvalRecipe, name: str, depth: int | None) -> tuple[Any, Training]:
    """As `MarvalRecipe.run` puts it together, on latents that are encoded already. One share is measured."""
    base = released_model(name, torch.float32, depth).to_empty(device=DEVICE)
    own = base.network_parameters() if recipe.part == "network" else base.head_parameters()
    shape, what = (base.spec.num_tokens, base.spec.channels), what_of(base)

    shares = recipe.training.accumulate
    training = replace(recipe.training, batch_size=recipe.training.batch_size // shares, accumulate=1)

    def clean(step: int, rank: int, num_ranks: int) -> tuple[Tensor, list[int]]:
        count = training.batch_size // num_ranks
        return torch.empty(count, *shape, device=DEVICE), what(0, count)

    trainer = marval_training.make_trainer(base, own, recipe.marval)
    batches = marval_training.MarvalBatches(clean, recipe.marval)
    turns = recipe.marval.auxiliary_updates + 1
    return base, Training(trainer, batches, training, 1, 2 * turns, shares)


def what_of(base: Any) -> Callable[[int, int], list[Any]]:
    """`what(number, count)`: classes or prompts."""
    one: Any = 0 if base.spec.draws == "class" else "a"
    return lambda number, count: [one] * count


TRAININGS: dict[str, Callable[[Any, str, int | None], tuple[Any, Training]]] = {
    "shortcut": shortcut,
    "speed-rl": speed_rl,
    "marval": marval,
}
"""By recipe: its settings, the name of a base model and its depth to what `of_config` gives."""


def of_config(path: Path, settings: list[str], depth: int | None = None) -> tuple[Any, Training]:
    """The base model and what the loop is given, as a config and further settings have them; to be called
    while the device is rehearsed on.

    Args:
        depth: blocks of the base model; None is the released number.

    Errors: ValueError for a config of another recipe, or a name that says no released size.
    """
    recipe, config = read(path, settings)
    return TRAININGS[recipe](config, base_name(path), depth)


def read(path: Path, settings: list[str]) -> tuple[str, Any]:
    """Name and settings of a recipe. Errors: ValueError for another recipe than those of `TRAININGS`."""
    recipe, written = read_config_file(path)
    if recipe not in TRAININGS:
        raise ValueError(f"{path} is of the recipe {recipe}: expected one of {', '.join(TRAININGS)}")
    return recipe, override(recipe_module(recipe).recipe(), [*written, *settings])


def measure(path: Path, settings: list[str], *, num_updates: int = 4) -> Cost:
    """The cost of a training, extrapolated as the module's docstring says.

    Args:
        num_updates: that are looked at of each round.

    Errors: as `of_config`.
    """
    recipe, config = read(path, settings)
    depth = released_depth(base_name(path))
    if recipe != "speed-rl":
        return _at_depth(path, settings, num_updates, depth)
    with torch.device("meta"):
        counts = config.planned(released_model(base_name(path), torch.float32, 1))[1].step_counts
    few, more = (
        _at_depth(path, [*settings, f"speed_rl.step_counts={steps}"], num_updates, depth) for steps in _STEPS
    )
    mean = sum(counts) / len(counts)
    flops = extrapolated(few, more, (mean - _STEPS[0]) / (_STEPS[1] - _STEPS[0]))
    return replace(more, round_flops=flops.round_flops, update_flops=flops.update_flops)


_DEPTHS, _STEPS = (1, 2), (2, 4)


def _at_depth(path: Path, settings: list[str], num_updates: int, depth: int | None) -> Cost:
    """The cost at the released depth."""
    if depth is None:
        return measure_at(path, settings, num_updates=num_updates)
    low, high = (measure_at(path, settings, num_updates=num_updates, depth=each) for each in _DEPTHS)
    return extrapolated(low, high, (depth - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0]))


def extrapolated(at_0: Cost, at_1: Cost, place: float) -> Cost:
    """All that differs, on the line through two costs."""
    changes: dict[str, Any] = {}
    for name in (each.name for each in fields(Cost)):
        first, second = getattr(at_0, name), getattr(at_1, name)
        if first != second:
            changes[name] = type(first)(first + place * (second - first))
    return replace(at_0, **changes)


def measure_at(path: Path, settings: list[str], *, num_updates: int = 4, depth: int | None = None) -> Cost:
    """The cost as it is counted, of a base model of `depth` blocks; None is the released number."""
    with ExitStack() as stack:
        stack.enter_context(found_by_accelerate())
        stack.enter_context(Rehearsal(values=False))
        memory, flops = stack.enter_context(Memory()), FlopCounterMode(display=False)
        base, training = of_config(path, settings, depth)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = begin(training.trainer, training.config, folder, "cost")
        again = stack.enter_context(computed_again(memory, flops))
        weights = memory.live
        with flops:
            steps, per_round = _advance(run, training, num_updates, flops, memory)
        updates = flops.get_total_flops() - per_round * training.num_rounds
    spared = sum(again.kept) - max(again.kept, default=0)
    return Cost(
        config=path.name,
        base=base_name(path),
        base_parameters=_count(base.parameters()),
        trained_parameters=_count(p for p in training.trainer.parameters() if p.requires_grad),
        weights_bytes=weights,
        round_peak_bytes=memory.peak_of_rounds,
        update_peak_bytes=memory.peak - spared + training.held_bytes,
        num_steps=training.config.num_steps,
        measured_steps=steps,
        round_flops=training.scale * per_round / training.updates_per_round,
        update_flops=training.scale * (updates + again.flops) / steps,
    )


@dataclass(slots=True)
class Again:
    """What recomputing activations saves and costs: bytes of each step, operations of all."""

    kept: list[int] = field(default_factory=list)
    flops: float = 0.0


@contextmanager
def computed_again(memory: Memory, flops: FlopCounterMode) -> Iterator[Again]:
    """Speed-RL's steps keep their activations, and are counted as if they were recomputed.

    PyTorch ends the process when it recomputes activations on a device without values. So the bytes of all
    steps but the largest come off the peak, and the forward operations are added once more. One update is
    measured this way.
    """
    found = Again()

    def counted(score: Callable[[], Any]) -> Any:
        live, before = memory.live, flops.get_total_flops()
        result = score()
        found.kept.append(memory.live - live)
        found.flops += flops.get_total_flops() - before
        return result

    was, ACTIVATIONS["recomputed"] = ACTIVATIONS["recomputed"], counted
    try:
        yield found
    finally:
        ACTIVATIONS["recomputed"] = was


def base_name(path: Path) -> str:
    """The released size that a config's name begins with. Errors: ValueError."""
    for name in random_names():
        if path.stem.startswith(name):
            return name
    raise ValueError(f"{path.name} must begin with a released size: {', '.join(random_names())}")


def _advance(
    run: Run, training: Training, num_updates: int, flops: FlopCounterMode, memory: Memory
) -> tuple[int, float]:
    """The first updates of every round; how many they are, and the operations to generate one round."""
    rounds = steps = update_peak = 0

    def batches(step: int, rank: int, num_ranks: int) -> object:
        nonlocal rounds, update_peak
        update_peak, memory.peak = max(update_peak, memory.peak), memory.live
        before = flops.get_total_flops()
        batch = training.batches(step, rank, num_ranks)
        rounds += flops.get_total_flops() - before
        memory.peak_of_rounds, memory.peak = max(memory.peak_of_rounds, memory.peak), memory.live
        return batch

    for number in range(training.num_rounds):
        run.step = number * training.updates_per_round
        for _ in range(min(num_updates, training.updates_per_round)):
            advance(run, batches, train_step, training.config)
            steps += 1
    memory.peak = max(update_peak, memory.peak)
    return steps, rounds / training.num_rounds


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def text(cost: Cost, *, memory_gb: float, tflops: float, utilisation: float) -> str:
    """What is printed."""
    hours = cost.hours(tflops * 1e12 * utilisation)
    return "\n".join(
        [
            f"{cost.config}: {cost.num_steps:,} updates, {cost.measured_steps} of them measured",
            f"base model   {cost.base_parameters / 1e6:,.0f} M parameters ({cost.base})",
            f"trained      {cost.trained_parameters / 1e6:,.1f} M parameters",
            f"memory       {cost.peak_bytes / 1e9:.1f} GB of {memory_gb:.0f} GB "
            f"({cost.weights_bytes / 1e9:.1f} GB before the first update)",
            f"operations   {cost.round_flops / 1e12:,.1f} TFLOP an update to generate what it learns from, "
            f"{cost.update_flops / 1e12:,.1f} TFLOP to learn",
            f"time         {hours:.1f} hours at {100 * utilisation:.0f} % of {tflops:.0f} TFLOP/s",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("settings", nargs="*", help="changes to it, as in training.accumulate=8")
    parser.add_argument("--updates", type=int, default=4, help="to measure of each round")
    parser.add_argument("--memory", type=float, default=80, help="of the card in GB")
    parser.add_argument("--tflops", type=float, default=989, help="its dense peak in bfloat16 (H100)")
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of the peak that is reached")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(argv)
    try:
        cost = measure(chosen.config, chosen.settings, num_updates=chosen.updates)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    card = {"memory_gb": chosen.memory, "tflops": chosen.tflops, "utilisation": chosen.utilisation}
    made = measurement("none: tensors without values")
    hours = cost.hours(chosen.tflops * 1e12 * chosen.utilisation)
    print(json.dumps(asdict(cost) | card | {"hours": hours} | made) if chosen.json else text(cost, **card))
    if not chosen.json:
        print(f"commit {made['commit']}, {made['date']}")


if __name__ == "__main__":
    main()
