"""Toy models in folders, for the trainers of methods."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.network import Network
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.meissonic import Meissonic
from swiftmask.recipes.held_out import LOG_NAME, best_of


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


@pytest.fixture(scope="session")
def toy_models(
    tmp_path_factory: pytest.TempPathFactory,
    golden_maskgit: MaskGIT,
    golden_mar: MAR,
    golden_meissonic: Meissonic,
    golden_dimoo: LuminaDiMOO,
) -> dict[str, Path]:
    """A folder with a model of each family, on 4x4 tokens, and `prompts.txt` beside them."""
    folder = tmp_path_factory.mktemp("toys")
    models = {
        "maskgit": golden_maskgit,
        "mar": golden_mar,
        "meissonic": golden_meissonic,
        "lumina_dimoo": golden_dimoo,
    }
    for name, model in models.items():
        model.save_pretrained(folder / name, provenance={})
    (folder / "prompts.txt").write_text("a red circle\na blue circle\n")
    return {name: folder / name for name in models} | {"prompts": folder / "prompts.txt"}


def asked_of(family: str, toys: dict[str, Path]) -> dict[str, str]:
    """The settings that name a toy model, and its prompts if it needs some."""
    prompts = {"prompts": str(toys["prompts"])} if family in ("meissonic", "lumina_dimoo") else {}
    return {"model": str(toys[family])} | prompts


def assert_same_best(one: Path, other: Path) -> None:
    """Two runs measured the same at their checkpoints and kept the same weights of the best."""
    assert (one / LOG_NAME).read_text() == (other / LOG_NAME).read_text()
    found, expected = (load_file(run / "best" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert best_of(one) is not None
