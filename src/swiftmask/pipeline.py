"""Where a model meets a method: `Pipeline.generate` prepares one decode, runs it, and says what it cost.

A pipeline is a base model plus a feature function and the placement of the full steps. `accelerate` (api.py)
makes another one around the same model; nothing is copied and nothing is changed in place.
"""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from swiftmask.core.arguments import (
    check_options,
    chosen_seeds,
    height_and_width,
    in_order,
    require_type,
    with_chains,
)
from swiftmask.core.compiled import MarkedSteps, compile_blocks, equal_sizes_apart, mode_of, records_graphs
from swiftmask.core.decode import FullFeatures, check_finite, decode, is_guided, prepare_condition
from swiftmask.core.operations import CountedOperations
from swiftmask.core.protocol import (
    Condition,
    FeatureFn,
    MaskedGenerator,
    Noise,
    SamplingOptions,
    WeighedGenerator,
)
from swiftmask.core.ranges import RANGES, Range, check
from swiftmask.core.rng import SeededNoise, ShapesOfNoise
from swiftmask.core.schedule import uniform_full_steps, with_full_steps
from swiftmask.core.steering import OnStep, Steered
from swiftmask.core.types import Canvas, Record, Schedule, Step, Trajectory
from swiftmask.data.images.inpainting import StartImage, paste_kept, start_image
from swiftmask.data.images.pixels import grey_where, to_pil
from swiftmask.data.prompts import require_text
from swiftmask.models.meissonic import Meissonic, Prompt, with_negative

Images = list[Image.Image] | Tensor
OutputType = Literal["pil", "pt"]

_MOST_TIMES_ITS_SIZE = 2
"""Sides longer than so many times a model's own, or as many times shorter than four, are refused: positions
that no training has shown.
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a generation cost.

    Attributes:
        calls: forward calls per image by part: "backbone" (both guidance branches in one call), the
            accelerator's own name, "head", "decoder", and "branches": guidance branches in each call.
        seconds: wall-clock of the token decode, all images together.
        decoder_seconds: wall-clock of turning tokens into pixels.
        count_flops: what `flops` asks.
    """

    calls: dict[str, int]
    seconds: float
    decoder_seconds: float
    count_flops: Callable[[], int] = field(repr=False, compare=False)

    @property
    def flops(self) -> int:
        """Floating-point operations per image of the token decode, counted analytically, without the
        decoder. Counting takes seconds, so it is done when first asked for.
        """
        return self.count_flops()


@dataclass(frozen=True, slots=True)
class Result:
    """Images, how they came about, and the cost.

    `images` are PIL images or a tensor [B, 3, H, W] in [0, 1]; of a run that was stopped, grey where no
    token is decided.
    """

    images: Images
    trajectory: Trajectory
    cost: Cost
    seeds: list[int]

    @property
    def stopped(self) -> bool:
        """Whether `on_step` ended the run before its last step."""
        return self.trajectory.num_masked > 0


@dataclass(frozen=True)
class Pipeline:
    """A masked generator with its acceleration.

    Attributes:
        features_fn: where acceleration plugs in; None is the full model.
        full_steps: how many steps run the backbone (placed by `uniform_full_steps`), or which; None is all.
        full_steps_by_default: whether nobody asked for that many: then at most half of a decode is full.
        sampling: overrides of the model's sampling defaults.
        steps: decode steps. 0, the default, takes the model's own, or one a token if it has fewer of them.
        folder: that the model came from, if it came from one; its provenance lies there.
        compile_mode: of `torch.compile`, if the repeated blocks are compiled (`compiled`).
    """

    model: MaskedGenerator
    name: str = "model"
    features_fn: FeatureFn | None = None
    full_steps: int | tuple[int, ...] | None = None
    full_steps_by_default: bool = False
    sampling: SamplingOptions = SamplingOptions()
    steps: int = 0
    folder: Path | None = field(default=None, compare=False)
    compile_mode: str | None = None
    _flops: dict[tuple[tuple[Step, ...], bool], int] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.steps == 0:
            object.__setattr__(self, "steps", min(self.model.steps, self.model.spec.num_tokens))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's weights (of the backbone, where a codec has another)."""
        parameters = self.model.parameters() if isinstance(self.model, nn.Module) else iter(())
        return next(parameters, torch.empty(())).dtype

    def generate(  # noqa: PLR0913 - the call that everybody makes: one argument for each question
        self,
        labels: Sequence[int | str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampling: SamplingOptions | None = None,
        size: int | tuple[int, int] | None = None,
        canvas: Canvas | None = None,
        start: StartImage | Sequence[StartImage] | None = None,
        output_type: OutputType = "pil",
        on_step: OnStep | None = None,
    ) -> Result:
        """Generate one image per label or prompt.

        Args:
            labels: classes by number or name; `prompts` for a text-to-image model.
            negative_prompt: what guidance leads away from: one for all prompts, or one for each.
            seeds: one per image (default 0, 1, 2, ...); a seed gives the same image in any batch.
            steps: decode steps N (default: the pipeline's).
            guidance: scale of guidance, 1 is off (default: the pipeline's).
            sampling: temperatures and what else `SamplingOptions` has, over the pipeline's.
            size: side in pixels, or height and width, for a model of several sizes.
            canvas: start from these tokens instead of a blank canvas; unmasked tokens are kept (inpainting,
                see `start_canvas`). Every image must have the same number of masked tokens.
            start: what `start` made of an image, for all, or one each: its kept pixels are in the result as
                they were. Every start must leave the same number of tokens to generate.
            on_step: called after every step with its record. It may return a `Steer`, which changes the
                guidance of the steps to come or stops the run; what it raises ends the decode.

        Errors: ValueError for an unknown class, a prompt given to a class model, impossible steps, or more
        images than a large model finds memory for; FloatingPointError if the weights, or their dtype, gave
        numbers that are not finite.
        """
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be 'pil' or 'pt', got {output_type!r}")
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step must be a function of a step's record, got {on_step!r}")
        require_type("sampling", sampling, SamplingOptions | None, "SamplingOptions")
        require_type("canvas", canvas, Canvas | None, "a Canvas, as start_canvas gives it")
        asked = SamplingOptions(guidance=guidance).over(sampling or SamplingOptions())
        pipeline = self if size is None else self.sized(*height_and_width(size))
        if asked != SamplingOptions():
            pipeline = replace(pipeline, sampling=asked.over(self.sampling), _flops={})
        with torch.no_grad():  # not inference_mode: models keep what they computed, and may be trained later
            condition = pipeline._encode(labels, prompts, negative_prompt)
        seeds = chosen_seeds(seeds, len(condition))
        starts = [] if start is None else _starts(start, len(condition))
        canvas = pipeline._first_canvas(canvas, starts, len(condition))
        schedule = pipeline.schedule(steps, num_masked=canvas.num_masked)
        if isinstance(pipeline.model, WeighedGenerator):
            method = "backbone" if pipeline.features_fn is None else pipeline.features_fn.name
            pipeline.model.check_room(condition, branches=pipeline.calls(schedule)["branches"], method=method)
        noise = SeededNoise(seeds, pipeline.model.spec.num_tokens, pipeline.model.device)
        synchronise(pipeline.model.device)
        steered = None if on_step is None else pipeline._steered(on_step, schedule)
        started = time.perf_counter()
        with torch.no_grad():
            trajectory = pipeline._decode(condition, schedule, noise, canvas, steered)
            synchronise(pipeline.model.device)
            decoded = time.perf_counter()
            images_B3HW = paste_kept(pipeline.pixels_of(trajectory.canvas), starts)
            synchronise(pipeline.model.device)
        finished = time.perf_counter()
        check_finite(trajectory, images_B3HW, pipeline.dtype)
        ran = schedule if steered is None else steered.ran
        calls, count_flops = pipeline.calls(ran, schedule), partial(pipeline.flops, ran, schedule)
        cost = Cost(calls, decoded - started, finished - decoded, count_flops)
        images = images_B3HW if output_type == "pt" else to_pil(images_B3HW)
        return Result(images, trajectory, cost, seeds)

    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels, as the codec gives them."""
        shadow = _on_meta(replace(self, features_fn=None, _flops={})).model
        with torch.no_grad():
            height, width = shadow.to_pixels(shadow.blank(1).tokens_BL).shape[-2:]
        return height, width

    def start(self, image: Image.Image, mask: Image.Image | None = None) -> StartImage:
        """What `generate(start=...)` starts from: inpainting and outpainting. Computes nothing on the device.

        Args:
            image: at most as large as the images; a smaller one lies in the middle, and what is around it
                is generated.
            mask: as large as the image; white is generated anew.

        Errors: ValueError for sizes that do not fit, or if everything or nothing is left to generate.
        """
        require_type("image", image, Image.Image, "a PIL image")
        require_type("mask", mask, Image.Image | None, "a PIL image")
        return start_image(image, mask, size=self.image_size(), grid=self.model.spec.grid)

    def start_canvas(self, image: Image.Image, mask: Image.Image | None = None, *, count: int = 1) -> Canvas:
        """The tokens that `start` would keep, as a canvas for `generate(canvas=...)`.

        Its pixels go through the codec like everything else and change a little; `generate(start=...)` pastes
        the kept ones back.

        Args:
            image, mask: as `start` takes them.
            count: images that start from it.

        Errors: as `start`.
        """
        require_type("image", image, Image.Image, "a PIL image")
        require_type("mask", mask, Image.Image | None, "a PIL image")
        check("count", count, Range(low=1, high=RANGES["num"].high), int)
        return self._started([self.start(image, mask)] * count)

    def pixels_of(self, canvas: Canvas) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of a canvas: grey where tokens are masked."""
        if canvas.num_masked == 0:
            return self._pixels(canvas.tokens_BL)
        blank = canvas.masked_BL if canvas.tokens_BL.ndim == 2 else canvas.masked_BL[..., None]
        images_B3HW = self._pixels(canvas.tokens_BL.masked_fill(blank, 0))
        return grey_where(canvas.masked_BL.unflatten(1, self.model.spec.grid), images_B3HW)

    def _pixels(self, tokens_BL: Tensor) -> Tensor:
        """Finished tokens to images. On the CPU one by one: its convolutions round otherwise in a batch of
        another size, and an image would depend on its batch in the last bit.
        """
        if self.model.device.type != "cpu":
            return self.model.to_pixels(tokens_BL)
        return torch.cat([self.model.to_pixels(tokens_1L) for tokens_1L in tokens_BL.split(1)])

    def _first_canvas(self, canvas: Canvas | None, starts: Sequence[StartImage], count: int) -> Canvas:
        """What the decode of so many images begins with. Errors: ValueError."""
        if starts:
            if canvas is not None:
                raise ValueError("give canvas or start, not both: a start has its own tokens")
            return self._started(starts)
        blank = self.model.blank(count)
        if canvas is None:
            return blank
        _check_start(canvas, blank.tokens_BL.shape)
        return canvas

    @torch.no_grad()
    def _started(self, starts: Sequence[StartImage]) -> Canvas:
        """Each image is encoded by itself, so that its tokens never depend on its batch."""
        device = self.model.device
        encoded = {id(start): start for start in starts}
        tokens = {
            key: self.model.to_tokens(start.image_3HW[None].to(device)) for key, start in encoded.items()
        }
        known_BN = torch.stack([(~start.drawn_L).nonzero().flatten() for start in starts]).to(device)
        tokens_BL = torch.cat([tokens[id(start)] for start in starts])
        index = known_BN if tokens_BL.ndim == 2 else known_BN[..., None].expand(-1, -1, tokens_BL.shape[-1])
        return self.model.blank(len(starts)).write(known_BN, tokens_BL.gather(1, index))

    def schedule(self, steps: int | None = None, *, num_masked: int | None = None) -> list[Step]:
        """The steps of one decode, with the full ones placed."""
        num_masked = self.model.spec.num_tokens if num_masked is None else num_masked
        steps = self.steps if steps is None else steps
        check("steps", steps, RANGES["steps"], int)
        check_options(self.sampling, self.model.spec)
        schedule = self.model.schedule(steps, num_masked=num_masked, options=self.sampling)
        if self.full_steps is None:
            return schedule
        return with_full_steps(schedule, self._placed(steps))

    def _placed(self, steps: int) -> Sequence[int]:
        """Which of so many steps are full; by default at most half."""
        count = self.full_steps
        assert count is not None
        if not isinstance(count, int):
            return count
        if self.full_steps_by_default:
            count = min(count, max(1, steps // 2))
        return uniform_full_steps(steps, count)

    def _steered(self, on_step: OnStep, schedule: Schedule) -> Steered:
        """`on_step` for a decode of this schedule."""

        def replanned(guidance: float) -> Schedule:
            options = replace(self.sampling, guidance=guidance)
            other = replace(self, sampling=options)
            return other.schedule(len(schedule), num_masked=schedule[0].num_masked_before)

        return Steered(on_step, guided=is_guided(schedule), replanned=replanned)

    def calls(self, schedule: Schedule, planned: Schedule | None = None) -> dict[str, int]:
        """Forward calls per image, by part.

        Args:
            planned: what was asked for, if `schedule` is what ran of it: it decides the branches.
        """
        num_full = sum(step.full for step in schedule)
        num_head = sum(1 if step.denoising is None else step.denoising.num_steps for step in schedule)
        calls = {"backbone": num_full, "head": num_head, "decoder": 1}
        if self.features_fn is not None and num_full < len(schedule):
            calls[self.features_fn.name] = len(schedule) - num_full
        return calls | {"branches": 2 if is_guided(planned or schedule) else 1}

    def flops(self, schedule: Schedule, planned: Schedule | None = None) -> int:
        """Operations of the token decode of one image: the loop itself, counted on the meta device.

        A denoising chain costs the same at every step of it, so two short chains tell what a long one costs.

        Args:
            planned: as `calls` takes it.
        """
        key = (tuple(schedule), is_guided(planned or schedule))
        if key not in self._flops:
            self._flops[key] = sum(self.chain_flops(schedule, planned))
        return self._flops[key]

    def chain_flops(self, schedule: Schedule, planned: Schedule | None = None) -> list[int]:
        """Operations of each step, with denoising chains of any length."""
        if not any(step.denoising for step in schedule):
            return self.step_flops(schedule, planned)
        two_S, three_S = (self.step_flops(with_chains(schedule, length), planned) for length in (2, 3))
        extra_S = [0 if s.denoising is None else s.denoising.num_steps - 2 for s in schedule]
        return [a + n * (b - a) for a, b, n in zip(two_S, three_S, extra_S, strict=True)]

    def step_flops(self, schedule: Schedule, planned: Schedule | None = None) -> list[int]:
        """Operations of each step.

        Attention is counted through the math backend: the fused one on CPUs counts as 0.
        """
        shadow = _on_meta(replace(self, _flops={}))
        # Which tokens are masked does not matter on the meta device, only how many.
        canvas = replace(shadow.model.blank(1), num_masked=schedule[0].num_masked_before)
        condition = shadow.model.encode([0] if self.model.spec.draws == "class" else [""])
        totals = [0]
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), CountedOperations() as counter:
            shadow._decode(
                condition,
                schedule,
                ShapesOfNoise(),
                canvas,
                lambda record: totals.append(counter.total),
                planned=planned,
            )
        return [after - before for before, after in pairwise(totals)]

    def sized(self, height: int, width: int) -> "Pipeline":
        """The same model generating images of so many pixels.

        Errors: ValueError for a size that it cannot generate, a model of one size, or an accelerator in
        place, which belongs to the size it was made for.
        """
        own = self.image_size()
        if not hasattr(self.model, "sized"):
            raise ValueError(f"{self.name} generates images of {own[0]}x{own[1]} only: leave out the size")
        for name, side, least, most in zip(
            ("height", "width"),
            (height, width),
            (side // 4 for side in own),
            (side * _MOST_TIMES_ITS_SIZE for side in own),
            strict=True,
        ):
            hint = f"{self.name} was made for {own[0]}x{own[1]} pixels"
            check(name, side, Range(low=max(1, least), high=most, hint=hint), int)
        if self.features_fn is not None:
            raise ValueError(f"{self.name} is accelerated already: choose its size before that")
        model: MaskedGenerator = self.model.sized(height, width)  # type: ignore[attr-defined]
        return replace(self, model=model, _flops={})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Moves the model and the accelerator in place; returns the pipeline."""
        for part in (self.model, self.features_fn):
            if isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype)
        return self

    def compiled(self, mode: bool | str = True) -> "Pipeline":
        """The same pipeline with the repeated blocks of model and accelerator compiled (core/compiled.py).

        In place: other pipelines around the same model run compiled, too. The first decode compiles, which
        takes seconds to minutes.

        Args:
            mode: of `torch.compile`; True is its default. False leaves everything as it is.

        Errors: ValueError for a mode there is none of.
        """
        chosen = mode_of(mode)
        if chosen is None:
            return self
        for part in (self.model, self.features_fn):
            compile_blocks(part, chosen)
        return replace(self, compile_mode=chosen)

    @property
    def step_features(self) -> FeatureFn:
        """What the decode loop calls at every step."""
        features_fn = self.features_fn or FullFeatures(self.model)
        return MarkedSteps(features_fn) if records_graphs(self.compile_mode) else features_fn

    def _encode(
        self,
        labels: Sequence[int | str] | None,
        prompts: Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
    ) -> Condition:
        draws = self.model.spec.draws
        given, refused = (labels, prompts) if draws == "class" else (prompts, labels)
        wanted = "classes (labels=[...])" if draws == "class" else "prompts (prompts=[...])"
        if refused is not None or given is None:
            raise ValueError(
                f"{self.name} takes {wanted}, got {'the other kind' if refused is not None else 'none'}"
            )
        if isinstance(given, str):
            raise ValueError(f"{self.name} takes {wanted}, got one string: write [{given!r}]")
        given = in_order(*(("labels", given, "classes") if draws == "class" else ("prompts", given, "texts")))
        if len(given) == 0:
            raise ValueError(f"nothing to generate: {self.name} takes {wanted}, got an empty list")
        if draws == "prompt":
            _require_prompts(given)
        if negative_prompt is None:
            return self.model.encode(given)
        if not isinstance(self.model, Meissonic):
            raise ValueError(f"{self.name} takes no negative_prompt: leave it out, or use a meissonic model")
        if self.sampling.guidance == 1.0:
            raise ValueError("negative_prompt needs guidance, got guidance 1, which turns it off")
        return self.model.encode(with_negative(given, _negatives(negative_prompt)))  # type: ignore[arg-type]

    def _decode(
        self,
        condition: Condition,
        schedule: Schedule,
        noise: Noise,
        canvas: Canvas,
        on_step: Callable[[Record], Schedule | None] | None,
        *,
        planned: Schedule | None = None,
    ) -> Trajectory:
        with nullcontext() if self.compile_mode is None else equal_sizes_apart():
            return decode(
                self.model,
                prepare_condition(self.model, condition, planned or schedule),
                schedule,
                noise,
                canvas=canvas,
                features_fn=self.step_features,
                unmask=self.model.unmask_rule(canvas, noise),
                on_step=on_step,
            )


def _require_prompts(given: Sequence[object]) -> None:
    """Errors: ValueError or TypeError naming the first that is no text, or empty."""
    for place, text in enumerate(given):
        require_type(f"prompts[{place}]", text, str | Prompt, "a text")
        if isinstance(text, str) and not require_text(text).strip():
            raise ValueError(f"prompts[{place}] is empty: say what the image shows")


def _negatives(given: str | Sequence[str]) -> str | list[str]:
    """One text for all prompts, or one for each. Errors: as `_require_prompts`; they may be empty."""
    listed = [given] if isinstance(given, str) else in_order("negative_prompt", given, "texts")
    for text in listed:
        require_type("negative_prompt", text, str, "a text")
        require_text(text)
    return given if isinstance(given, str) else listed


def _starts(start: StartImage | Sequence[StartImage], count: int) -> list[StartImage]:
    """One for each image. Errors: ValueError for another number, or unequal numbers of tokens to generate."""
    starts = [start] * count if isinstance(start, StartImage) else in_order("start", start, "starts")
    if len(starts) != count:
        raise ValueError(f"one start for all images, or one each: got {len(starts)} for {count} images")
    for place, one in enumerate(starts):
        require_type(f"start[{place}]", one, StartImage, "what Pipeline.start gives")
    if len(counts := {one.num_drawn for one in starts}) > 1:
        raise ValueError(
            f"every start of a batch must leave as many tokens to generate, got {sorted(counts)}: generate "
            "them in batches of their own"
        )
    return starts


def _check_start(canvas: Canvas, shape: torch.Size) -> None:
    """Reads from the device once. Errors: ValueError unless its tokens have that shape, and its images as
    many masked tokens as it says, and at least one.
    """
    if canvas.tokens_BL.shape != shape:
        raise ValueError(
            f"canvas must have tokens of shape {tuple(shape)}, one row for each image of this model, got "
            f"{tuple(canvas.tokens_BL.shape)}"
        )
    counts = set(canvas.masked_BL.sum(dim=1).tolist())
    if counts != {canvas.num_masked} or 0 in counts:
        raise ValueError(
            "every start canvas of a batch needs the same number of masked tokens, and at least one: "
            f"got {sorted(counts)} in masked_BL and num_masked={canvas.num_masked}"
        )


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still computes: times are taken between two of these."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _on_meta(pipeline: Pipeline) -> Pipeline:
    """A copy with every weight on the meta device; real weights are never duplicated."""
    modules = [part for part in (pipeline.model, pipeline.features_fn) if isinstance(part, nn.Module)]
    memo: dict[int, object] = {}
    for module in modules:
        memo |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
        memo |= {id(b): b.to("meta") for b in module.buffers()}
    return copy.deepcopy(pipeline, memo)
