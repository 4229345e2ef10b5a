"""A tiny untrained MAR of Scenes classes, in a folder: a teacher for the MARVAL recipes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.network import Network


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, golden_mar: MAR) -> Path:
    """All weights random: a released initialisation has zeros where gradients would vanish."""
    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(replace(golden_mar.network.config, num_classes=len(CLASS_NAMES)))
        codec = KLCodec(replace(golden_mar.codec.config, image_size=64))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model = MAR(network, codec, sampling=golden_mar.sampling, class_names=CLASS_NAMES)
    model.save_pretrained(folder, provenance={})
    return folder
