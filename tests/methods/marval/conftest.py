"""A toy base model with a diffusion head: 4x4 continuous tokens, a two-layer backbone, an exact head.

Its tokens are Gaussian given their context, so the head knows the exact noise at every timestep, and what
distillation should reach can be written down: the student's one call is linear in its noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from swiftmask.core.protocol import Noise, SamplingOptions, Spec, UnmaskRule
from swiftmask.core.schedule import cosine_left
from swiftmask.core.tokens import gather_rows
from swiftmask.core.types import Canvas, Denoising, Step
from swiftmask.core.unmask import by_order, order_masked

GRID, CHANNELS, WIDTH, NUM_CLASSES, NUM_TIMESTEPS = 4, 3, 16, 3, 1000


def mar_signal() -> Tensor:
    """MAR's cosine schedule: float64 [1000]."""
    edges = torch.arange(NUM_TIMESTEPS + 1, dtype=torch.float64) / NUM_TIMESTEPS
    curve = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cumprod(1 - (1 - curve[1:] / curve[:-1]).clamp(max=0.999), dim=0)


@dataclass(frozen=True, slots=True)
class ToyCondition:
    labels_X: Tensor
    num_branches: int = 1

    def __len__(self) -> int:
        return len(self.labels_X) // self.num_branches


@dataclass(frozen=True, slots=True)
class GaussianTokens:
    """What the toy's reverse chain would converge to."""

    mean_BMC: Tensor
    std_BMC: Tensor
    positions_BM: Tensor

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, None]:
        noise_BMC = noise.normal(self.positions_BM, CHANNELS)
        return self.mean_BMC + self.std_BMC * step.temperature * noise_BMC, None

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> None:
        return None


class ToyMAR(nn.Module):
    """A `DenoisingModel`. `paint` is its codec without the clamp of `to_pixels`."""

    signal_T: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(CHANNELS, WIDTH)
        self.mask_token = nn.Parameter(torch.randn(WIDTH))
        self.position = nn.Parameter(torch.randn(GRID * GRID, WIDTH))
        self.classes = nn.Embedding(NUM_CLASSES, WIDTH)
        self.null = nn.Parameter(torch.randn(WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Sequential(nn.Linear(WIDTH, 24), nn.SiLU(), nn.Linear(24, 2 * CHANNELS))
        self.codec = nn.Linear(CHANNELS, 3)
        self.signal_T = mar_signal()
        self.eval()

    @property
    def spec(self) -> Spec:
        return Spec(
            name="toy",
            draws="class",
            grid=(GRID, GRID),
            width=WIDTH,
            codebook_size=None,
            channels=CHANNELS,
            mask_id=0,
            has_log_prob=False,
        )

    @property
    def device(self) -> torch.device:
        return self.mask_token.device

    def encode(self, what: Sequence[str] | Sequence[int]) -> ToyCondition:
        return ToyCondition(torch.tensor([int(label) for label in what]).to(self.device))

    def with_null(self, condition: ToyCondition) -> ToyCondition:
        return ToyCondition(condition.labels_X.repeat(2), 2)

    def features(self, canvas: Canvas, condition: ToyCondition) -> Tensor:
        known_BLD = self.project(canvas.tokens_BL.to(self.project.weight.dtype))
        hidden_BLD = torch.where(canvas.masked_BL[..., None], self.mask_token, known_BLD) + self.position
        class_BD = self.classes(condition.labels_X[: len(condition)])
        vectors = [class_BD, self.null.expand_as(class_BD)][: condition.num_branches]
        hidden_GBLD = hidden_BLD + torch.stack(vectors)[:, :, None]
        mixed_GBLD = self.mix(hidden_GBLD.mean(dim=2, keepdim=True)) + hidden_GBLD
        return self.norm(self.dropout(mixed_GBLD.tanh()) + hidden_GBLD)

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> GaussianTokens:
        assert guidance == 1.0
        mean_BMC, log_std_BMC = self.moments(gather_rows(features_GBTD, positions_BM)[0])
        return GaussianTokens(mean_BMC, log_std_BMC.exp(), positions_BM)

    def denoise(self, noisy_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor) -> Tensor:
        signal_X1 = self.signal_T.to(noisy_XC)[timesteps_X][:, None]
        mean_XC, log_std_XC = self.moments(context_XD)
        variance_XC = signal_X1 * (2 * log_std_XC).exp() + (1 - signal_X1)
        return (1 - signal_X1).sqrt() * (noisy_XC - signal_X1.sqrt() * mean_XC) / variance_XC

    def moments(self, context_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of a token: [X, C] each."""
        mean_XC, log_std_XC = self.head(context_XD.to(next(self.head.parameters()).dtype)).chunk(2, dim=-1)
        return mean_XC, log_std_XC - 0.7

    def network_parameters(self) -> list[str]:
        names = [name for name, _ in self.named_parameters()]
        return [name for name in names if not name.startswith(("null", "codec"))]

    def head_parameters(self) -> list[str]:
        return [name for name, _ in self.named_parameters() if name.startswith("head")]

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        return self.project(tokens_BN) + self.position[positions_BN]

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        return self.paint(tokens_BL).clamp(0, 1)

    def paint(self, tokens_BL: Tensor) -> Tensor:
        return self.codec(tokens_BL).transpose(1, 2).unflatten(2, (GRID, GRID)) + 0.5

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        return (images_B3HW - 0.5).flatten(2).transpose(1, 2)

    def blank(self, batch: int) -> Canvas:
        masked_BL = torch.ones(batch, GRID * GRID, dtype=torch.bool, device=self.device)
        return Canvas(torch.zeros(batch, GRID * GRID, CHANNELS, device=self.device), masked_BL, GRID * GRID)

    def schedule(self, num_steps: int, *, num_masked: int, options: SamplingOptions) -> list[Step]:
        chosen = options.over(SamplingOptions(guidance=3.0, temperature=1.0, denoising_steps=10))
        assert chosen.guidance is not None
        assert chosen.temperature is not None
        assert isinstance(chosen.denoising_steps, int)
        left = [num_masked, *cosine_left(num_masked, num_steps, torch.float64)]
        step = Step(
            index=0,
            num_masked_before=0,
            num_masked_after=0,
            guidance=chosen.guidance,
            temperature=chosen.temperature,
            denoising=Denoising(num_steps=chosen.denoising_steps),
        )
        return [
            replace(step, index=i, num_masked_before=left[i], num_masked_after=left[i + 1])
            for i in range(num_steps)
        ]

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> UnmaskRule:
        return by_order(order_masked(noise.permutation(GRID * GRID), canvas))


@pytest.fixture
def teacher() -> ToyMAR:
    torch.manual_seed(0)
    return ToyMAR().requires_grad_(False)


@pytest.fixture(params=["network", "head"])
def own(request: pytest.FixtureRequest, teacher: ToyMAR) -> list[str]:
    """What a student trains: the whole network, or its head alone."""
    return {"network": teacher.network_parameters, "head": teacher.head_parameters}[request.param]()
