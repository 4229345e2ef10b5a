"""Settings of Speed-RL; names are those of TRL's GRPOConfig where it has them."""

from collections.abc import Mapping
from dataclasses import dataclass

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import CODE_TEMPERATURE, check, check_fields
from swiftmask.methods.speed_rl.filtering import FilterConfig
from swiftmask.methods.speed_rl.likelihood import ACTIVATIONS
from swiftmask.methods.speed_rl.objective import IMPORTANCE_SAMPLING_LEVELS, KL_ESTIMATORS, KLEstimator
from swiftmask.methods.speed_rl.policy import TuningConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRLConfig:
    """Settings of Speed-RL.

    A round generates `generation_batch_size` images, `num_generations` for each of its prompts, and learns
    from them in `steps_per_generation` parts, `num_iterations` times over. With one part once over, the
    likelihood ratio is 1 and its clipping inert.

    Attributes:
        tuning: adapters or parameters that are trained.
        num_generations: images of a group.
        generation_batch_size: images of a round over all processes.
        steps_per_generation: updates that one pass over a round takes.
        num_iterations: passes over a round.
        step_counts: decode steps; every group holds each number equally often. None: the recipe chooses.
        sampling: of the decode, over the model's defaults.
        importance_sampling_level: what a likelihood ratio is averaged over: "token" or "sequence".
        epsilon, epsilon_high: clipping of ratios below 1 - epsilon and above 1 + epsilon_high.
        kl_estimator: "ce", "k3" or "none".
        beta: weight of the divergence; 0 runs no reference.
        speed_weight: of the speed reward, which says nothing where there is one step count; 0 turns it off.
        adv_clip_max: largest magnitude of an advantage.
        images_per_forward: images generated or scored together.
        activations: "recomputed" in the backward pass, or "kept".

    Errors: ValueError for an unknown name or sizes that do not divide.
    """

    tuning: TuningConfig
    num_generations: int = 8
    generation_batch_size: int = 64
    steps_per_generation: int = 1
    num_iterations: int = 1
    step_counts: tuple[int, ...] = ()
    sampling: SamplingOptions = SamplingOptions()
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    kl_estimator: str = "ce"
    beta: float = 0.02
    speed_weight: float = 0.1
    adv_clip_max: float = 5.0
    filter: FilterConfig = FilterConfig()
    images_per_forward: int = 16
    activations: str = "recomputed"
    seed: int = 0

    def __post_init__(self) -> None:
        for key, table in _TABLES.items():
            if (name := getattr(self, key)) not in table:
                raise ValueError(f"{key} must be one of {', '.join(table)}, got {name!r}")
        check_fields(self)
        if self.sampling.temperature is not None:
            check("sampling.temperature", self.sampling.temperature, CODE_TEMPERATURE)
        self._check_sizes()

    def _check_sizes(self) -> None:
        for key in ("num_generations", "steps_per_generation"):
            if self.generation_batch_size % getattr(self, key):
                raise ValueError(
                    f"generation_batch_size must be a multiple of {key} ({getattr(self, key)}), "
                    f"got {self.generation_batch_size}"
                )
        if len(self.step_counts) > self.num_generations:
            raise ValueError(
                f"step_counts must be at most num_generations ({self.num_generations}) numbers, got "
                f"{self.step_counts}: a group holds each of them"
            )

    @property
    def kl(self) -> KLEstimator | None:
        """What holds the policy to its reference, if anything does."""
        return KL_ESTIMATORS[self.kl_estimator] if self.beta else None

    @property
    def updates_per_round(self) -> int:
        return self.steps_per_generation * self.num_iterations

    @property
    def num_prompts(self) -> int:
        """Of a round."""
        return self.generation_batch_size // self.num_generations


_TABLES: dict[str, Mapping[str, object]] = {
    "importance_sampling_level": IMPORTANCE_SAMPLING_LEVELS,
    "kl_estimator": KL_ESTIMATORS,
    "activations": ACTIVATIONS,
}
