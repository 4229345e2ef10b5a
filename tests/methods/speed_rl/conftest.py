"""A tiny MaskGIT (4x4 tokens, 16 codes, 3 classes) for Speed-RL to tune, and what its rewards look at."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.speed_rl import Judge, Reward, Scorers, SpeedRLConfig, TuningConfig
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.training.setup import TrainingConfig

NUM_CODES, NUM_CLASSES = 16, 3
TARGETS = {
    "lora": r"transformer\.transformer\..*\.(net\.\d|out_proj)",
    "full": r"transformer\..*",
}


@pytest.fixture
def base() -> MaskGIT:
    return toy_model()


def toy_model() -> MaskGIT:
    torch.manual_seed(0)
    sizes = TransformerConfig(
        width=32,
        depth=2,
        num_heads=4,
        mlp_width=64,
        codebook_size=NUM_CODES,
        num_classes=NUM_CLASSES,
        grid=4,
    )
    transformer = Transformer(sizes)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if parameter.ndim == 2 and "bias" not in name:
                parameter.mul_(8)  # predictions that depend on what is known, and on the class
    codec = VQGANConfig(
        ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=4, z_channels=4,
        n_embed=NUM_CODES, embed_dim=4,
    )  # fmt: skip
    sampling = SamplingOptions(guidance=3.0, temperature=1.0, choice_temperature=2.0)
    return MaskGIT(transformer, VQGAN(codec), sampling=sampling)


@pytest.fixture
def transparent(base, monkeypatch) -> MaskGIT:
    """The same, whose images are its codes: rewards can look at those."""

    def paint(self: MaskGIT, tokens_BL: Tensor) -> Tensor:
        return (tokens_BL.float() / NUM_CODES).view(-1, 1, 4, 4).expand(-1, 3, -1, -1)

    monkeypatch.setattr(MaskGIT, "to_pixels", paint)
    return base


def share_of_even_codes(images_B3HW: Tensor, prompts: Sequence[int]) -> Tensor:
    """Reads the code of each place off an image of `transparent`."""
    codes_BL = (images_B3HW[:, 0] * NUM_CODES).round().flatten(1)
    return (codes_BL % 2 == 0).float().mean(dim=1)


def brightness(images_B3HW: Tensor, prompts: Sequence[int]) -> Tensor:
    return images_B3HW.mean(dim=(1, 2, 3))


@pytest.fixture
def scorers() -> Scorers:
    return Scorers([Reward("even", share_of_even_codes)], [Judge("brightness", brightness)])


@pytest.fixture
def make_tuning() -> Callable[[str], TuningConfig]:
    return lambda method: TuningConfig(method=method, targets=TARGETS[method], lora_r=4, lora_alpha=8)


@pytest.fixture
def make_config(make_tuning) -> Callable[..., SpeedRLConfig]:
    def make(method: str = "full", **changes) -> SpeedRLConfig:
        settings = {
            "num_generations": 4,
            "generation_batch_size": 8,
            "step_counts": (2, 4),
            "speed_weight": 0.0,
            "activations": "kept",
            "tuning": make_tuning(method),
        }
        return SpeedRLConfig(**(settings | changes))

    return make


@pytest.fixture
def make_training() -> Callable[..., TrainingConfig]:
    def make(num_steps: int, **changes) -> TrainingConfig:
        settings = {
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "save_every": 2,
            "log_every": 1,
            "precision": "no",
        }
        return TrainingConfig(num_steps=num_steps, **(settings | changes))

    return make
