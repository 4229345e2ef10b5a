"""A tiny untrained Scenes model with its shortcut, in folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, write_shortcut
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
