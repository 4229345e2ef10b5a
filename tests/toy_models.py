"""Untrained models of Scenes' captions, a few channels wide, as a training starts them."""

from pathlib import Path

import torch

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.trainable import Subject
from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.data.scenes import World
from swiftmask.registry import trainable

SIDE, NUM_CODES = 8, 16


def captions(count: int = 300) -> list[str]:
    """Captions in which every word of the grammar occurs."""
    return World(simple_percent=10).captions(torch.arange(count))


def caption_model(family: str, *, side: int = SIDE, downscale: int = 2) -> MaskedGenerator:
    """A Meissonic or Lumina-DiMOO that knows all words of Scenes' captions."""
    torch.manual_seed(0)
    config = VQConfig(
        block_out_channels=(4,) * downscale.bit_length(),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=NUM_CODES,
        norm_num_groups=2,
    )
    own = trainable(family)
    subject = Subject(codec=build_vq_codec(config), resolution=side, captions=captions())
    task = own.fresh(own.chosen("tiny", own.unset), subject, own.objective)
    return task.model(task.trainer, own.sampling, 4)


def caption_folder(family: str, folder: Path, **sizes: int) -> Path:
    """The same as a folder; its provenance says that it draws Scenes."""
    model = caption_model(family, **sizes)
    model.save_pretrained(folder, provenance={"world": {"simple_percent": 100}})  # type: ignore[attr-defined]
    return folder
