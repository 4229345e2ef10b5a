"""MARVAL's student (arXiv 2511.15190): a copy of the teacher whose head answers in one call.

    x0 = (u - sigma eps(u, t, context)) / alpha,    u = sigma * standard normal noise,

with alpha and sigma of one fixed timestep t. Before training this is the teacher's own guess of x0 at that
timestep, had it seen u. The paper leaves t open; its relatives (SiD, SIM) start at sigma / alpha = 2.5.
Guidance is baked into the weights, so there is no null branch, and the variance half of MAR's head is unused.

Relied on of the teacher: row l of its features is the context of token l; `features` and `denoise` cast
what they are given to the dtype of their weights, and run on the meta device.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swiftmask.core.compiled import RepeatedBlocks, Repeating
from swiftmask.core.protocol import Condition, DenoisingModel, Noise, SamplingOptions, Spec, UnmaskRule
from swiftmask.core.reading import some
from swiftmask.core.types import Canvas, Step

NOISE_RATIO = 2.5
"""sigma / alpha of the timestep a student answers at, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class OneCallTokens:
    """Continuous tokens at some positions, each generated in one head call; cannot score.

    Attributes:
        generate: `generate(noise_XC, context_XD) -> tokens_XC`.
        context_XD: contexts of the positions, image by image.
    """

    generate: Callable[[Tensor, Tensor], Tensor]
    context_XD: Tensor
    positions_BM: Tensor
    channels: int

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, None]:
        """Tokens float32 [B, M, C]; the temperature scales the noise they are made from.

        With gradients enabled only the noise and the contexts are kept, and the call is repeated in the
        backward pass: a roll-out through many steps holds the activations of one.
        """
        noise_BMC = step.temperature * noise.normal(self.positions_BM, self.channels)
        noise_XC = noise_BMC.flatten(0, 1)
        if torch.is_grad_enabled():
            tokens_XC = checkpoint(self.generate, noise_XC, self.context_XD, use_reentrant=False)
        else:
            tokens_XC = self.generate(noise_XC, self.context_XD)
        return tokens_XC.view_as(noise_BMC), None

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> None:
        return None


class Student(nn.Module):
    """A masked generator with a one-call head, around a copy of its teacher (`make_student`).

    Args:
        model: the copy.
        own: names of the parameters of `model` that are its own; the others are its teacher's.
        timestep: the fixed timestep; None takes the one whose sigma / alpha is nearest 2.5.
    """

    def __init__(self, model: DenoisingModel, own: Iterable[str], *, timestep: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.own = frozenset(own)
        signal_T = model.signal_T
        self.timestep = nearest_timestep(signal_T) if timestep is None else timestep
        if not 0 <= self.timestep < len(signal_T):
            raise ValueError(f"timestep must be between 0 and {len(signal_T) - 1}, got {self.timestep}")
        signal = float(signal_T[self.timestep])  # on the host: read once, here
        self._alpha, self._sigma = signal**0.5, (1 - signal) ** 0.5
        self.eval()

    def predict(self, noise_XC: Tensor, context_XD: Tensor) -> Tensor:
        """Tokens float32 [X, C] from standard normal noise: one head call."""
        noisy_XC = self._sigma * noise_XC.float()
        timesteps_X = torch.full((len(noisy_XC),), self.timestep, device=noisy_XC.device)
        eps_XC = denoised_noise(self.model, noisy_XC, timesteps_X, context_XD)
        return (noisy_XC - self._sigma * eps_XC) / self._alpha

    @property
    def settings(self) -> tuple[int]:
        """What decides the tokens besides the weights: the timestep."""
        return (self.timestep,)

    @property
    def spec(self) -> Spec:
        return self.model.spec

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def steps(self) -> int:
        return self.model.steps

    def encode(self, what: Sequence[str] | Sequence[int]) -> Condition:
        return self.model.encode(what)

    def with_null(self, condition: Any) -> Any:
        """The condition as it is: a student has no null branch."""
        return condition

    def features(self, canvas: Canvas, condition: Any) -> Tensor:
        return self.model.features(canvas, condition)

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> OneCallTokens:
        """The one-call head. Errors: ValueError for a guidance other than 1 (it is in the weights)."""
        if guidance != 1.0:
            raise ValueError(f"{_BAKED}: expected guidance 1.0, got {guidance}; leave guidance out")
        context_XD = contexts_at(features_GBTD, positions_BM)[0]
        channels = self.spec.channels
        assert channels is not None
        return OneCallTokens(self.predict, context_XD, positions_BM, channels)

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        return self.model.embed(tokens_BN, positions_BN)

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        return self.model.to_pixels(tokens_BL)

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        return self.model.to_tokens(images_B3HW)

    def blank(self, batch: int) -> Canvas:
        return self.model.blank(batch)

    def repeated_blocks(self) -> RepeatedBlocks:
        """Those of the model, as far as it names any."""
        return self.model.repeated_blocks() if isinstance(self.model, Repeating) else RepeatedBlocks(())

    def schedule(self, num_steps: int, *, num_masked: int, options: SamplingOptions) -> list[Step]:
        """The teacher's counts and temperatures, unguided, one head call a step.

        Errors: ValueError for an option that only a teacher's head can follow.
        """
        given = [name for name in ("denoising_steps", "sampler") if getattr(options, name) is not None]
        if options.guidance not in (None, 1.0):
            given.insert(0, "guidance")
        if given:
            raise ValueError(f"{_BAKED} and needs no denoising steps: leave out {' and '.join(given)}")
        unguided = replace(options, guidance=1.0)
        steps = self.model.schedule(num_steps, num_masked=num_masked, options=unguided)
        return [replace(step, guidance=1.0, denoising=None) for step in steps]

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> UnmaskRule:
        return self.model.unmask_rule(canvas, noise)


_BAKED = "a MARVAL student answers in one head call, its guidance baked in"


def make_student(teacher: DenoisingModel, own: Iterable[str], *, timestep: int | None = None) -> Student:
    """A student that starts as its teacher and trains the parameters `own`.

    Args:
        own: the teacher's `network_parameters`, or its `head_parameters` for the cheap variant.
    """
    own = frozenset(own)
    return Student(copy_of(teacher, own), own, timestep=timestep)


def copy_of(teacher: DenoisingModel, own: Iterable[str]) -> DenoisingModel:
    """A copy with parameters of its own where `own` names them, in eval mode.

    Everything else is the teacher's memory, and frozen there: codec and, if the head alone is trained, the
    backbone exist once.

    Errors: ValueError for a name the teacher does not have.
    """
    own = frozenset(own)
    module = as_module(teacher)
    parameters = dict(module.named_parameters())
    if unknown := sorted(own - set(parameters)):
        raise ValueError(
            f"{teacher.spec.name} has no parameters {some(unknown)}: it has {some(list(parameters))}"
        )
    shared = [parameter.requires_grad_(False) for name, parameter in parameters.items() if name not in own]
    copied = copy.deepcopy(teacher, {id(tensor): tensor for tensor in (*shared, *module.buffers())})
    for name, parameter in as_module(copied).eval().named_parameters():
        parameter.requires_grad_(name in own)
    return copied


def nearest_timestep(signal_T: Tensor, noise_ratio: float = NOISE_RATIO) -> int:
    """The timestep whose sigma / alpha is nearest `noise_ratio` (755 in MAR's schedule)."""
    signal_T = signal_T.double()
    return int((((1 - signal_T) / signal_T).sqrt() - noise_ratio).abs().argmin())


def contexts_at(features_GBTD: Tensor, positions_BM: Tensor) -> Tensor:
    """The rows of each image at its positions, image by image: [G, B * M, D].

    By `index_select`, whose backward pass, unlike that of `gather`, does not keep the features.
    """
    batch, num_rows = features_GBTD.shape[1:3]
    first_B1 = torch.arange(batch, device=positions_BM.device)[:, None] * num_rows
    return features_GBTD.flatten(1, 2).index_select(1, (first_B1 + positions_BM).flatten())


def denoised_noise(
    model: DenoisingModel, noisy_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor
) -> Tensor:
    """The noise the head sees, as float32 [X, C]: what follows divides it by small numbers."""
    return model.denoise(noisy_XC, timesteps_X, context_XD).float()


def as_module(model: DenoisingModel) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model
