"""The only contracts between models, methods and the decode loop."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, Self, TypedDict, runtime_checkable

import torch
from torch import Tensor

from swiftmask.core.ranges import CODE_TEMPERATURE, check, check_fields
from swiftmask.core.types import Canvas, Decision, Features, Record, Schedule, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What the core and the methods may know about a model.

    Attributes:
        name: model family, the name of its folder under `models/`.
        draws: what it is conditioned on, "class" or "prompt".
        grid: rows and columns of the token canvas.
        width: last axis of the features.
        codebook_size: number of codes, or None for continuous tokens.
        channels: channels of a continuous token, or None for codes.
        mask_id: token value written at masked positions.
        has_log_prob: whether the token head can score a token (needed by reinforcement learning).
        num_classes: of a model that generates classes.
    """

    name: str
    draws: Literal["class", "prompt"]
    grid: tuple[int, int]
    width: int
    codebook_size: int | None
    channels: int | None
    mask_id: int
    has_log_prob: bool
    num_classes: int | None = None

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def blank_codes(self, batch: int, device: torch.device) -> Canvas:
        """A canvas of codes, all masked."""
        shape = (batch, self.num_tokens)
        return Canvas.blank(torch.full(shape, self.mask_id, dtype=torch.int64, device=device))


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The model that an accelerator was made for, as its `config.json` says: a name to call it, and sizes."""

    name: str
    family: str
    width: int
    grid: tuple[int, int]
    codebook_size: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, spec: Spec, name: str | None = None) -> Self:
        """As it is written; without a name it is called by its family."""
        sizes = {key: getattr(spec, key) for key in ("width", "grid", "codebook_size", "channels")}
        return cls(name=name or spec.name, family=spec.name, **sizes)

    def differences(self, spec: Spec) -> list[str]:
        """Where a model is another one. A name is no identity: a tuned copy may have any."""
        found, told = asdict(BaseModel.of(spec)), asdict(self)
        return [
            f"{key} {told[key]} against {value}"
            for key, value in found.items()
            if key != "name" and told[key] not in (None, value)
        ]


class Noise(Protocol):
    """Owns every random draw of a decode; one stream per image (rng.py)."""

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor: ...

    def gumbel(self, positions_BM: Tensor) -> Tensor: ...

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor: ...

    def permutation(self, num_tokens: int) -> Tensor: ...

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor: ...


class TokenDistribution(Protocol):
    """What the token head says about some positions."""

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, M] or [B, M, C] drawn from every image's own stream at the temperature (and with the
        denoising) of `step`, and their `log_prob`.
        """
        ...

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> Tensor | None:
        """Float32 log-probabilities [B, M], or None where the head cannot score."""
        ...


class Condition(Protocol):
    """What to generate, ready for the backbone. Opaque to the core but for its branches: conditional, then
    null.
    """

    @property
    def num_branches(self) -> int: ...

    def __len__(self) -> int:
        """Number of images (not of rows)."""
        ...


@runtime_checkable
class PlannedCondition(Condition, Protocol):
    """The condition of a backbone that is told how many decode steps are left (Meissonic)."""

    def along(self, schedule: Schedule) -> Self:
        """The same condition in a decode of this schedule."""
        ...


class MaskedGenerator(Protocol):
    """The whole contract of a base model.

    `condition` is typed Any below because each model takes only conditions of its own making.
    """

    @property
    def spec(self) -> Spec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def steps(self) -> int:
        """Decode steps that the model is made for: the default of whoever generates with it."""
        ...

    def encode(self, what: Sequence[str] | Sequence[int]) -> Condition:
        """Class labels or prompts to a condition with one branch. Errors: ValueError naming the bad entry."""
        ...

    def with_null(self, condition: Any) -> Condition:
        """The same condition with the null branch beside it, prepared once per decode."""
        ...

    def features(self, canvas: Canvas, condition: Any) -> Tensor:
        """The heavy part: last hidden states after the final norm, all branches in one forward: [G, B, T,
        D].
        """
        ...

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> TokenDistribution:
        """The light head, at `positions_BM` only."""
        ...

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        """Token plus position embeddings [B, N, D] of freshly decided tokens: what a shortcut reads."""
        ...

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        """Finished tokens to images [B, 3, H, W] in [0, 1]."""
        ...

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] to tokens, for start canvases (inpainting)."""
        ...

    def blank(self, batch: int) -> Canvas:
        """A fully masked canvas on the model's device."""
        ...

    def schedule(self, num_steps: int, *, num_masked: int, options: "SamplingOptions") -> list[Step]:
        """The model's own schedule dialect (schedule.py)."""
        ...

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> "UnmaskRule":
        """The model's own rule for which positions to decide (unmask.py)."""
        ...


@runtime_checkable
class ScoringModel(MaskedGenerator, Protocol):
    """A base model that can score its tokens: what reinforcement learning needs."""

    def null(self, condition: Any) -> Condition:
        """The null branch of a one-branch condition, by itself."""
        ...


@runtime_checkable
class WeighedGenerator(Protocol):
    """A model so large that a decode is weighed before it starts (Lumina-DiMOO)."""

    def check_room(self, condition: Any, *, branches: int, method: str) -> None:
        """Whether a decode fits, `method` being the name of its feature function. Errors: ValueError saying
        what would.
        """
        ...


class DenoisingModel(MaskedGenerator, Protocol):
    """A base model whose head denoises one token at a time (MAR): what distilling that head needs.

    Its `features` are the contexts of the head, and its noisy tokens `sqrt(signal) x + sqrt(1 - signal) eps`.
    """

    @property
    def signal_T(self) -> Tensor:  # noqa: N802 - axes in the name
        """Cumulative product of 1 - beta at each timestep of training: float64 [num_timesteps]."""
        ...

    def denoise(self, noisy_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor) -> Tensor:
        """The noise the head sees in noisy tokens, unguided: [X, C] for int64 timesteps [X]."""
        ...

    def network_parameters(self) -> list[str]:
        """Names of the parameters that generating a token reads: conditional backbone and head, not the codec
        and not what only the null branch reads.
        """
        ...

    def head_parameters(self) -> list[str]:
        """Those of them that the head reads."""
        ...


class CodeSampling(TypedDict):
    """Knobs of a schedule of codes, all of them chosen."""

    guidance: float
    temperature: float
    choice_temperature: float
    schedule_power: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """Knobs of a schedule; None takes the model's default.

    Attributes:
        schedule_power: the share still masked after a step is the model's own to this power (default: 1).
            Above 1, more tokens are decided early and fewer late.
        denoising_steps: head calls per token of a diffusion head, or (first, last) to anneal them linearly
            over the decode (DiSA, arXiv 2505.20297).
        sampler: of a diffusion head.
        noisiest_timestep: where its chain starts; lower for heads whose error at the last timesteps is too
            large for what a cosine schedule multiplies it by.

    Errors: ValueError for a value out of range (ranges.py).
    """

    guidance: float | None = None
    temperature: float | None = None
    choice_temperature: float | None = None
    schedule_power: float | None = None
    denoising_steps: int | tuple[int, int] | None = None
    sampler: Literal["ancestral", "ddim"] | None = None
    noisiest_timestep: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.denoising_steps, list):  # JSON has no tuples
            object.__setattr__(self, "denoising_steps", tuple(self.denoising_steps))
        check_fields(self)

    def over(self, defaults: Self) -> Self:
        """These options, with `defaults` where they say nothing."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(defaults, **given)

    def of_codes(self) -> CodeSampling:
        """What a schedule of codes asks for.

        Errors: ValueError if something of it is left open, or for a temperature of 0.
        """
        if self.guidance is None or self.temperature is None or self.choice_temperature is None:
            raise ValueError(f"guidance, temperature and choice_temperature must be chosen, got {self}")
        check("temperature", self.temperature, CODE_TEMPERATURE)
        return CodeSampling(
            guidance=self.guidance,
            temperature=self.temperature,
            choice_temperature=self.choice_temperature,
            schedule_power=self.power,
        )

    @property
    def power(self) -> float:
        """`schedule_power`, which is 1 where nothing is said of it."""
        return 1.0 if self.schedule_power is None else self.schedule_power


Head = Callable[[Tensor], TokenDistribution]
"""The token head at given positions: `head(positions_BM) -> TokenDistribution`."""


class UnmaskRule(Protocol):
    """Decides `step.num_decided` of the masked positions, before or after sampling them."""

    def __call__(self, head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision: ...


class FeatureFn(Protocol):
    """Where acceleration plugs in: the features of this step, from the canvas or from the previous record.

    `name` labels its calls in the cost table; a step with `step.full` runs the backbone. `settings` are all
    numbers and choices besides the weights that decide the features: hashable, of the same `repr` in every
    process. Measurements are kept under them.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> tuple[object, ...]: ...

    def __call__(
        self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None
    ) -> Features: ...
