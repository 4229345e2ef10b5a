"""Tiny untrained Scenes models in folders: a MaskGIT with its shortcut, a MAR with its student."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.methods.marval import make_student, write_student
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, write_shortcut
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.network import Network
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig

CODEC = VQGANConfig(
    ch=32,
    ch_mult=(1, 1, 1),
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=24,
    z_channels=8,
    n_embed=32,
    embed_dim=8,
    image_size=64,
)
SIZES = TransformerConfig(
    width=32, depth=2, num_heads=2, mlp_width=64, codebook_size=32, num_classes=len(CLASS_NAMES), grid=6
)


def _write(folder: Path, *, seed: int = 0) -> Path:
    """`folder/tiny` and its shortcut `folder/tiny-shortcut`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MaskGIT(Transformer(SIZES), VQGAN(CODEC), class_names=CLASS_NAMES)
        shortcut = Shortcut(ShortcutConfig(width=32, bottleneck_width=16, num_heads=2))
    model.save_pretrained(folder / "tiny", provenance={})
    write_shortcut(folder / "tiny-shortcut", shortcut, base=model.spec, provenance={})
    return folder / "tiny"


@pytest.fixture(scope="session")
def write_tiny_scenes() -> Callable[..., Path]:
    """`write_tiny_scenes(folder, seed=0)` writes the two folders and returns the model's."""
    return _write


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_mar_scenes(tmp_path_factory: pytest.TempPathFactory, golden_mar: MAR) -> Path:
    """`tiny-mar` (3 denoising steps) and its student `tiny-mar-marval`; returns the first."""
    folder = tmp_path_factory.mktemp("models") / "tiny-mar"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(replace(golden_mar.network.config, num_classes=len(CLASS_NAMES)))
        codec = KLCodec(replace(golden_mar.codec.config, image_size=64))
    model = MAR(network, codec, sampling=golden_mar.sampling, class_names=CLASS_NAMES)
    model.save_pretrained(folder, provenance={})
    student = make_student(model, model.head_parameters())
    with torch.no_grad():  # an untrained one is refused as its teacher's own weights
        for parameter in student.parameters():
            parameter.mul_(1.01 if parameter.requires_grad else 1.0)
    write_student(folder.with_name("tiny-mar-marval"), student, provenance={}, base_name="tiny-mar")
    return folder
